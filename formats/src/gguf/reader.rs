//! Reads a GGUF header from untrusted bytes.
//!
//! Every count is checked against a cap and against the bytes that are left before anything is
//! allocated for it, every sum and product is checked, and the tensors must fill the data section
//! in order without overlap or hole, as ggml's own reader demands.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::split;
use super::value::type_id;
use super::{
    Array, DEFAULT_ALIGNMENT, MAGIC, Metadata, TensorInfo, TensorType, VERSION, Value, align_up,
};

/// Caps on what a header may claim; far above real files, far below what harms the reader.
pub mod limits {
    /// Metadata entries. Real files have under 100.
    pub const METADATA_ENTRIES: u64 = 1 << 16;
    /// Tensors. The largest models have some thousands.
    pub const TENSORS: u64 = 1 << 20;
    /// Bytes of a key (the specification's own limit).
    pub const KEY_BYTES: u64 = (1 << 16) - 1;
    /// Bytes of a string value. Chat templates are tens of kilobytes, container plans megabytes.
    pub const STRING_BYTES: u64 = 1 << 28;
    /// Elements of an array. Vocabularies have under a million.
    pub const ARRAY_ELEMENTS: u64 = 1 << 28;
    /// Bytes of a tensor name (`GGML_MAX_NAME` less its terminator).
    pub const NAME_BYTES: u64 = 63;
    /// Dimensions of a tensor (`GGML_MAX_DIMS`).
    pub const DIMS: u32 = 4;
    /// Elements of a tensor; ggml counts in `int64_t`.
    pub const ELEMENTS: u64 = i64::MAX as u64;
    /// Alignment of the data section.
    pub const ALIGNMENT: u64 = 1 << 16;
}

/// Why bytes are not an acceptable GGUF file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum GgufError {
    #[error(
        "it is part {number} of a model in {count} GGUF files; give it and the others the names by which llama.cpp finds them (`model-{number:05}-of-{count:05}.gguf`), or join them with `llama-gguf-split --merge FIRST-PART JOINED.gguf`"
    )]
    Split { number: u64, count: u64 },
    #[error("not a GGUF file: it begins with {found:02x?}, expected `GGUF`")]
    Magic { found: Vec<u8> },
    #[error(
        "GGUF version {found} is not supported, expected {VERSION}; convert the file with a current llama.cpp"
    )]
    Version { found: u32 },
    #[error("the file is big-endian; only little-endian GGUF is supported")]
    BigEndian,
    #[error("the file ends at byte {len} inside {what}; it is truncated or damaged")]
    Truncated { what: String, len: u64 },
    #[error("{what} is {found}, the limit is {limit}; the file is damaged or hostile")]
    Limit {
        what: String,
        found: u64,
        limit: u64,
    },
    #[error("{what} is not valid UTF-8")]
    Utf8 { what: String },
    #[error("metadata key `{0}` appears twice")]
    DuplicateKey(String),
    #[error("tensor `{0}` appears twice")]
    DuplicateTensor(String),
    #[error(
        "{what} has value type {found}, which GGUF v3 does not define or dwindle does not read"
    )]
    ValueType { what: String, found: u32 },
    #[error("{what} is a boolean with the value {found}, expected 0 or 1")]
    Boolean { what: String, found: u8 },
    #[error("`general.alignment` is {found}, expected a power of two up to {limit}", limit = limits::ALIGNMENT)]
    Alignment { found: u64 },
    #[error("tensor `{name}` has element type {found}, which is not a ggml type of this version")]
    TensorType { name: String, found: u32 },
    #[error("tensor `{name}` of type {ty} has shape {shape:?}: {problem}")]
    Shape {
        name: String,
        ty: TensorType,
        shape: Vec<u64>,
        problem: &'static str,
    },
    #[error("tensor `{name}` begins at offset {found} of the data section, expected {expected}")]
    Offset {
        name: String,
        found: u64,
        expected: u64,
    },
    #[error("tensor `{name}` needs bytes up to {needed}, the file has {len}; it is truncated")]
    DataTruncated { name: String, needed: u64, len: u64 },
}

/// A checked header: everything of the file but tensor data.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Metadata in file order.
    pub metadata: Metadata,
    /// Tensors in file order; their offsets ascend.
    pub tensors: Vec<TensorInfo>,
    /// Where each metadata value's bytes are in the file, in the order of `metadata`.
    pub value_ranges: Vec<Range<usize>>,
    /// Alignment of tensor data.
    pub alignment: u64,
    /// Where the header ends, before padding.
    pub header_end: u64,
    /// Where the data section begins.
    pub data_start: u64,
    /// Where each name stands in `tensors`.
    by_name: HashMap<String, usize>,
}

impl Header {
    /// The bytes of a tensor's data, as a range of file offsets without padding.
    pub fn data_range(&self, tensor: &TensorInfo) -> Range<usize> {
        // `read_header` has held both ends against the length of a slice, so they fit.
        let start = (self.data_start + tensor.offset) as usize;
        start..start + tensor.bytes() as usize
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|i| &self.tensors[*i])
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: u64, what: &dyn Fn() -> String) -> Result<&'a [u8], GgufError> {
        let left = (self.bytes.len() - self.at) as u64;
        if n > left {
            return Err(GgufError::Truncated {
                what: what(),
                len: self.bytes.len() as u64,
            });
        }
        let slice = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &dyn Fn() -> String) -> Result<[u8; N], GgufError> {
        let slice = self.take(N as u64, what)?;
        let mut out = [0; N];
        out.copy_from_slice(slice);
        Ok(out)
    }

    fn u32(&mut self, what: &dyn Fn() -> String) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &dyn Fn() -> String) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn count(&mut self, limit: u64, what: &dyn Fn() -> String) -> Result<u64, GgufError> {
        let found = self.u64(what)?;
        if found > limit {
            return Err(GgufError::Limit {
                what: what(),
                found,
                limit,
            });
        }
        Ok(found)
    }

    fn string(&mut self, limit: u64, what: &dyn Fn() -> String) -> Result<String, GgufError> {
        let len = self.count(limit, &|| format!("the length of {}", what()))?;
        let bytes = self.take(len, what)?;
        match std::str::from_utf8(bytes) {
            Ok(s) => Ok(s.to_string()),
            Err(_) => Err(GgufError::Utf8 { what: what() }),
        }
    }
}

/// Reads and checks the header of a GGUF file.
///
/// `bytes` is the whole file (usually memory-mapped). Tensor data is only checked against its
/// length.
///
/// # Errors
/// Any deviation from GGUF v3, any claim over the [`limits`], tensors that overlap, leave holes
/// or reach past the end of the file; a file that is one part of several.
pub fn read_header(bytes: &[u8]) -> Result<Header, GgufError> {
    let header = read_part(bytes)?;
    split::refuse_metadata(&header.metadata)?;
    Ok(header)
}

/// The same of a file that may be one part of several; [`join`](super::join) says whether they belong together.
///
/// # Errors
/// As [`read_header`].
pub fn read_part(bytes: &[u8]) -> Result<Header, GgufError> {
    let mut cur = Cursor { bytes, at: 0 };
    read_version(&mut cur)?;
    let tensor_count = cur.count(limits::TENSORS, &|| "the tensor count".into())?;
    let entry_count = cur.count(limits::METADATA_ENTRIES, &|| "the metadata count".into())?;
    let (metadata, value_ranges) = read_metadata(&mut cur, entry_count)?;
    let alignment = read_alignment(&metadata)?;
    let (tensors, by_name) = read_tensors(&mut cur, tensor_count, alignment)?;
    let header_end = cur.at as u64;
    let data_start = align_up(header_end, alignment).unwrap_or(u64::MAX);
    check_end(&tensors, data_start, bytes.len() as u64)?;
    Ok(Header {
        metadata,
        tensors,
        value_ranges,
        alignment,
        header_end,
        data_start,
        by_name,
    })
}

fn read_version(cur: &mut Cursor<'_>) -> Result<(), GgufError> {
    let magic: [u8; 4] = cur.array(&|| "the magic bytes".into())?;
    if magic != MAGIC {
        return Err(GgufError::Magic {
            found: magic.to_vec(),
        });
    }
    let version = cur.u32(&|| "the version".into())?;
    if version.swap_bytes() == VERSION {
        return Err(GgufError::BigEndian);
    }
    if version != VERSION {
        return Err(GgufError::Version { found: version });
    }
    Ok(())
}

/// The metadata, and where its values lie.
fn read_metadata(
    cur: &mut Cursor<'_>,
    entry_count: u64,
) -> Result<(Metadata, Vec<Range<usize>>), GgufError> {
    let mut metadata = Vec::new();
    let mut value_ranges = Vec::new();
    let mut keys = HashSet::new();
    for _ in 0..entry_count {
        let key = cur.string(limits::KEY_BYTES, &|| "a metadata key".into())?;
        let ty = cur.u32(&|| format!("the type of `{key}`"))?;
        let start = cur.at;
        let value = read_value(cur, ty, &|| format!("metadata `{key}`"))?;
        value_ranges.push(start..cur.at);
        if !keys.insert(key.clone()) {
            return Err(GgufError::DuplicateKey(key));
        }
        metadata.push((key, value));
    }
    Ok((Metadata::from_unique(metadata), value_ranges))
}

/// The list of tensors, which lie one after the other, and their places in it.
fn read_tensors(
    cur: &mut Cursor<'_>,
    tensor_count: u64,
    alignment: u64,
) -> Result<(Vec<TensorInfo>, HashMap<String, usize>), GgufError> {
    let mut tensors: Vec<TensorInfo> = Vec::new();
    let mut by_name = HashMap::new();
    let mut expected = 0u64;
    for index in 0..tensor_count {
        let tensor = read_tensor_info(cur, index)?;
        if by_name.insert(tensor.name.clone(), tensors.len()).is_some() {
            return Err(GgufError::DuplicateTensor(tensor.name));
        }
        if tensor.offset != expected {
            return Err(GgufError::Offset {
                name: tensor.name,
                found: tensor.offset,
                expected,
            });
        }
        expected = tensor
            .offset
            .checked_add(tensor.bytes())
            .and_then(|end| align_up(end, alignment))
            .ok_or_else(|| overflow(&tensor))?;
        tensors.push(tensor);
    }
    Ok((tensors, by_name))
}

/// The last tensor must end within the file.
fn check_end(tensors: &[TensorInfo], data_start: u64, len: u64) -> Result<(), GgufError> {
    if let Some(last) = tensors.last() {
        let needed = data_start
            .checked_add(last.offset)
            .and_then(|start| start.checked_add(last.bytes()))
            .ok_or_else(|| overflow(last))?;
        if needed > len {
            return Err(GgufError::DataTruncated {
                name: last.name.clone(),
                needed,
                len,
            });
        }
    }
    Ok(())
}

fn overflow(tensor: &TensorInfo) -> GgufError {
    GgufError::Shape {
        name: tensor.name.clone(),
        ty: tensor.ty,
        shape: tensor.shape.clone(),
        problem: "its end overflows 64 bits",
    }
}

fn read_alignment(metadata: &Metadata) -> Result<u64, GgufError> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(n))
            if n.is_power_of_two() && u64::from(*n) <= limits::ALIGNMENT && *n >= 8 =>
        {
            Ok((*n).into())
        }
        Some(other) => Err(GgufError::Alignment {
            found: other.as_u64().unwrap_or(0),
        }),
    }
}

fn read_value(
    cur: &mut Cursor<'_>,
    ty: u32,
    what: &dyn Fn() -> String,
) -> Result<Value, GgufError> {
    use type_id as id;
    Ok(match ty {
        id::U8 => Value::U8(cur.array::<1>(what)?[0]),
        id::I8 => Value::I8(i8::from_le_bytes(cur.array(what)?)),
        id::U16 => Value::U16(u16::from_le_bytes(cur.array(what)?)),
        id::I16 => Value::I16(i16::from_le_bytes(cur.array(what)?)),
        id::U32 => Value::U32(cur.u32(what)?),
        id::I32 => Value::I32(i32::from_le_bytes(cur.array(what)?)),
        id::F32 => Value::F32(f32::from_le_bytes(cur.array(what)?)),
        id::BOOL => Value::Bool(read_bool(cur.array::<1>(what)?[0], what)?),
        id::STRING => Value::String(cur.string(limits::STRING_BYTES, what)?),
        id::U64 => Value::U64(cur.u64(what)?),
        id::I64 => Value::I64(i64::from_le_bytes(cur.array(what)?)),
        id::F64 => Value::F64(f64::from_le_bytes(cur.array(what)?)),
        id::ARRAY => Value::Array(read_array(cur, what)?),
        found => {
            return Err(GgufError::ValueType {
                what: what(),
                found,
            });
        }
    })
}

fn read_bool(byte: u8, what: &dyn Fn() -> String) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(GgufError::Boolean {
            what: what(),
            found,
        }),
    }
}

fn read_array(cur: &mut Cursor<'_>, what: &dyn Fn() -> String) -> Result<Array, GgufError> {
    use type_id as id;
    let ty = cur.u32(what)?;
    let count = cur.count(limits::ARRAY_ELEMENTS, &|| {
        format!("the length of {}", what())
    })?;
    macro_rules! numbers {
        ($variant:ident, $number:ty) => {{
            const SIZE: usize = std::mem::size_of::<$number>();
            // The bytes are taken before anything is allocated for them.
            let bytes = cur.take(count * SIZE as u64, what)?;
            let (chunks, _) = bytes.as_chunks::<SIZE>();
            Array::$variant(
                chunks
                    .iter()
                    .map(|c| <$number>::from_le_bytes(*c))
                    .collect(),
            )
        }};
    }
    Ok(match ty {
        id::U8 => numbers!(U8, u8),
        id::I8 => numbers!(I8, i8),
        id::U16 => numbers!(U16, u16),
        id::I16 => numbers!(I16, i16),
        id::U32 => numbers!(U32, u32),
        id::I32 => numbers!(I32, i32),
        id::F32 => numbers!(F32, f32),
        id::U64 => numbers!(U64, u64),
        id::I64 => numbers!(I64, i64),
        id::F64 => numbers!(F64, f64),
        id::BOOL => Array::Bool(
            cur.take(count, what)?
                .iter()
                .map(|b| read_bool(*b, what))
                .collect::<Result<_, _>>()?,
        ),
        id::STRING => {
            // Grows as strings are read: eight bytes of file justify each slot.
            let mut strings = Vec::new();
            for _ in 0..count {
                strings.push(cur.string(limits::STRING_BYTES, what)?);
            }
            Array::String(strings)
        }
        found => {
            return Err(GgufError::ValueType {
                what: what(),
                found,
            });
        }
    })
}

fn read_tensor_info(cur: &mut Cursor<'_>, index: u64) -> Result<TensorInfo, GgufError> {
    let what = || format!("the description of tensor {index}");
    let name = cur.string(limits::NAME_BYTES, &|| {
        format!("the name of tensor {index}")
    })?;
    let dims = cur.u32(&what)?;
    if dims == 0 || dims > limits::DIMS {
        return Err(GgufError::Limit {
            what: format!("the dimension count of tensor `{name}`"),
            found: dims.into(),
            limit: limits::DIMS.into(),
        });
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        shape.push(cur.u64(&what)?);
    }
    let found = cur.u32(&what)?;
    let offset = cur.u64(&what)?;
    let Some(ty) = TensorType::from_id(found) else {
        return Err(GgufError::TensorType { name, found });
    };
    let problem = if shape.contains(&0) {
        Some("a dimension is zero")
    } else if shape
        .iter()
        .try_fold(1u64, |acc, n| acc.checked_mul(*n))
        .is_none_or(|n| n > limits::ELEMENTS)
    {
        Some("it has more elements than 63 bits can count")
    } else if ty.bytes(&shape).is_none() {
        Some("its rows do not divide into blocks of its type, or its size overflows")
    } else {
        None
    };
    if let Some(problem) = problem {
        return Err(GgufError::Shape {
            name,
            ty,
            shape,
            problem,
        });
    }
    Ok(TensorInfo {
        name,
        shape,
        ty,
        offset,
    })
}
