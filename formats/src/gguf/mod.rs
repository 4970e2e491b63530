//! GGUF v3: the file format of llama.cpp.
//!
//! [`read_header`] turns the bytes of a file into a checked [`Header`]; [`encode_header`] turns
//! metadata and tensor descriptions into bytes. Tensor data is never copied here.

mod reader;
mod split;
mod tensor_type;
mod value;
mod writer;

pub use reader::{GgufError, Header, limits, read_header, read_part};
pub use split::{SplitError, is_rearranged, join, part_metadata, part_name, parts, refuse_split};
pub use tensor_type::{TensorType, UnknownType};
pub use value::{Array, Metadata, Value, type_id};
pub use writer::{TensorLayout, encode_header, header_len, lay_out};

/// The four bytes that open every GGUF file.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The format version that is read and written.
pub const VERSION: u32 = 3;
/// The alignment of tensor data when the file does not say another.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// What the header says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique name, UTF-8, at most 63 bytes (ggml's `GGML_MAX_NAME`).
    pub name: String,
    /// Dimensions in ggml's order: the row length (fastest) first.
    pub shape: Vec<u64>,
    /// Element type.
    pub ty: TensorType,
    /// Offset of the data from the start of the data section, in bytes.
    pub offset: u64,
}

impl TensorInfo {
    /// Bytes of data, by shape and type.
    ///
    /// A [`TensorInfo`] of a checked [`Header`] always has a size; one made by hand with a row
    /// that does not divide into blocks counts as empty.
    pub fn bytes(&self) -> u64 {
        self.ty.bytes(&self.shape).unwrap_or(0)
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// Rounds up to the next multiple of a power of two, or `None` on overflow.
pub fn align_up(n: u64, alignment: u64) -> Option<u64> {
    n.checked_add(alignment - 1).map(|v| v & !(alignment - 1))
}
