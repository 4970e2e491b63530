//! Writes a GGUF header. Tensors are laid out first, so that every size is known before the first
//! byte is written.

use super::value::type_id;
use super::{Array, MAGIC, Metadata, TensorInfo, TensorType, VERSION, Value, align_up};

/// A tensor to be described: what the caller knows before offsets exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorLayout {
    /// Unique name.
    pub name: String,
    /// Dimensions, row length first.
    pub shape: Vec<u64>,
    /// Element type.
    pub ty: TensorType,
}

/// Gives each tensor its offset, in order, and returns them with the size of the data section
/// (padding after the last tensor included). `None` when a size overflows or a row does not
/// divide into blocks.
pub fn lay_out(tensors: Vec<TensorLayout>, alignment: u64) -> Option<(Vec<TensorInfo>, u64)> {
    let mut offset = 0u64;
    let mut infos = Vec::with_capacity(tensors.len());
    for t in tensors {
        let bytes = t.ty.bytes(&t.shape)?;
        infos.push(TensorInfo {
            name: t.name,
            shape: t.shape,
            ty: t.ty,
            offset,
        });
        offset = align_up(offset.checked_add(bytes)?, alignment)?;
    }
    Some((infos, offset))
}

/// The length of the encoded header before padding, in bytes.
pub fn header_len(metadata: &Metadata, tensors: &[TensorInfo]) -> u64 {
    let entries: u64 = metadata
        .iter()
        .map(|(key, value)| 8 + key.len() as u64 + 4 + value_len(value))
        .sum();
    let infos: u64 = tensors
        .iter()
        .map(|t| 8 + t.name.len() as u64 + 4 + 8 * t.shape.len() as u64 + 4 + 8)
        .sum();
    24 + entries + infos
}

fn value_len(value: &Value) -> u64 {
    match value {
        Value::U8(_) | Value::I8(_) | Value::Bool(_) => 1,
        Value::U16(_) | Value::I16(_) => 2,
        Value::U32(_) | Value::I32(_) | Value::F32(_) => 4,
        Value::U64(_) | Value::I64(_) | Value::F64(_) => 8,
        Value::String(s) => 8 + s.len() as u64,
        Value::Array(a) => {
            12 + match a {
                Array::U8(v) => v.len(),
                Array::I8(v) => v.len(),
                Array::Bool(v) => v.len(),
                Array::U16(v) => 2 * v.len(),
                Array::I16(v) => 2 * v.len(),
                Array::U32(v) => 4 * v.len(),
                Array::I32(v) => 4 * v.len(),
                Array::F32(v) => 4 * v.len(),
                Array::U64(v) => 8 * v.len(),
                Array::I64(v) => 8 * v.len(),
                Array::F64(v) => 8 * v.len(),
                Array::String(v) => v.iter().map(|s| 8 + s.len()).sum(),
            } as u64
        }
    }
}

/// The header's bytes, padded with zeros to the alignment: tensor data follows directly.
///
/// The alignment is not added to the metadata; a caller that deviates from the default sets
/// `general.alignment` itself.
pub fn encode_header(metadata: &Metadata, tensors: &[TensorInfo], alignment: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(header_len(metadata, tensors) as usize + alignment as usize);
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_string(&mut out, key);
        put_value(&mut out, value);
    }
    for t in tensors {
        put_string(&mut out, &t.name);
        out.extend((t.shape.len() as u32).to_le_bytes());
        for n in &t.shape {
            out.extend(n.to_le_bytes());
        }
        out.extend(t.ty.id().to_le_bytes());
        out.extend(t.offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
    out
}

fn put_string(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    use type_id as id;
    macro_rules! number {
        ($id:expr, $v:expr) => {{
            out.extend($id.to_le_bytes());
            out.extend($v.to_le_bytes());
        }};
    }
    macro_rules! numbers {
        ($id:expr, $v:expr) => {{
            out.extend($id.to_le_bytes());
            out.extend(($v.len() as u64).to_le_bytes());
            $v.iter().for_each(|n| out.extend(n.to_le_bytes()));
        }};
    }
    match value {
        Value::U8(v) => number!(id::U8, v),
        Value::I8(v) => number!(id::I8, v),
        Value::U16(v) => number!(id::U16, v),
        Value::I16(v) => number!(id::I16, v),
        Value::U32(v) => number!(id::U32, v),
        Value::I32(v) => number!(id::I32, v),
        Value::F32(v) => number!(id::F32, v),
        Value::Bool(v) => number!(id::BOOL, u8::from(*v)),
        Value::U64(v) => number!(id::U64, v),
        Value::I64(v) => number!(id::I64, v),
        Value::F64(v) => number!(id::F64, v),
        Value::String(s) => {
            out.extend(id::STRING.to_le_bytes());
            put_string(out, s);
        }
        Value::Array(a) => {
            out.extend(id::ARRAY.to_le_bytes());
            match a {
                Array::U8(v) => numbers!(id::U8, v),
                Array::I8(v) => numbers!(id::I8, v),
                Array::U16(v) => numbers!(id::U16, v),
                Array::I16(v) => numbers!(id::I16, v),
                Array::U32(v) => numbers!(id::U32, v),
                Array::I32(v) => numbers!(id::I32, v),
                Array::F32(v) => numbers!(id::F32, v),
                Array::U64(v) => numbers!(id::U64, v),
                Array::I64(v) => numbers!(id::I64, v),
                Array::F64(v) => numbers!(id::F64, v),
                Array::Bool(v) => {
                    out.extend(id::BOOL.to_le_bytes());
                    out.extend((v.len() as u64).to_le_bytes());
                    out.extend(v.iter().map(|b| u8::from(*b)));
                }
                Array::String(v) => {
                    out.extend(id::STRING.to_le_bytes());
                    out.extend((v.len() as u64).to_le_bytes());
                    v.iter().for_each(|s| put_string(out, s));
                }
            }
        }
    }
}
