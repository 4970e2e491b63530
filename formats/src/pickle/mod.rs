//! Weights that PyTorch saved (`pytorch_model.bin`), read without Python.
//!
//! Such a file is a pickle, whose instructions call functions by name, and beside it the bytes of the tensors, in a zip
//! archive or, before PyTorch 1.6, one after another. Reading one calls nothing: the instructions are read as data, and
//! a file that calls anything but what makes a dictionary of tensors is refused by the name of what it calls.

mod archive;
mod legacy;
mod machine;
mod state;

use std::ops::Range;

/// A tensor of such a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PickledTensor {
    /// Its name in the dictionary.
    pub name: String,
    /// Its elements.
    pub elements: Elements,
    /// Its dimensions, rows first.
    pub shape: Vec<usize>,
    /// Where its bytes are in the file, rows one after another, little-endian.
    pub range: Range<usize>,
}

/// Types of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // their names say what they are
pub enum Elements {
    Bool,
    U8,
    I8,
    I16,
    I32,
    I64,
    F8E4M3,
    F8E5M2,
    F16,
    BF16,
    F32,
    F64,
}

impl Elements {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Elements::Bool | Elements::U8 | Elements::I8 => 1,
            Elements::F8E4M3 | Elements::F8E5M2 => 1,
            Elements::I16 | Elements::F16 | Elements::BF16 => 2,
            Elements::I32 | Elements::F32 => 4,
            Elements::I64 | Elements::F64 => 8,
        }
    }

    /// What PyTorch calls the storage or the type of such elements.
    fn named(name: &str) -> Option<Elements> {
        let (_, name) = name.rsplit_once('.')?;
        Some(match name {
            "BoolStorage" | "bool" => Elements::Bool,
            "ByteStorage" | "uint8" | "UntypedStorage" => Elements::U8,
            "CharStorage" | "int8" => Elements::I8,
            "ShortStorage" | "int16" => Elements::I16,
            "IntStorage" | "int32" => Elements::I32,
            "LongStorage" | "int64" => Elements::I64,
            "float8_e4m3fn" => Elements::F8E4M3,
            "float8_e5m2" => Elements::F8E5M2,
            "HalfStorage" | "float16" => Elements::F16,
            "BFloat16Storage" | "bfloat16" => Elements::BF16,
            "FloatStorage" | "float32" => Elements::F32,
            "DoubleStorage" | "float64" => Elements::F64,
            _ => return None,
        })
    }
}

/// Why such a file can't be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum PickleError {
    #[error(
        "it calls `{0}`, which makes no tensor; a file of weights has no reason to, so don't load it with Python either"
    )]
    Calls(String),
    #[error("its instructions are damaged at byte {at}")]
    Damaged { at: usize },
    #[error("instruction {code:#04x} at byte {at} is none that weights are saved with")]
    Instruction { code: u8, at: usize },
    #[error("it holds no dictionary of tensors")]
    NoTensors,
    #[error("tensor `{tensor}` {problem}")]
    Tensor {
        tensor: String,
        problem: &'static str,
    },
    #[error("its archive can't be read: {0}")]
    Archive(String),
}

/// The tensors of a file of PyTorch's, in their order there.
///
/// # Errors
/// When it is damaged, holds something else than a dictionary of tensors, or tensors that are views of others in another
/// order.
///
/// # Examples
/// ```
/// assert!(dwindle_formats::pickle::read(b"not a file of PyTorch's").is_err());
/// ```
pub fn read(bytes: &[u8]) -> Result<Vec<PickledTensor>, PickleError> {
    match bytes {
        [b'P', b'K', ..] => archive::read(bytes),
        _ => legacy::read(bytes),
    }
}
