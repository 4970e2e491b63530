//! The element types of ggml: id, name, and how many bytes a block of elements takes.

use std::fmt;
use std::str::FromStr;

/// A ggml element type that may stand in a GGUF file.
///
/// The ids are those of `enum ggml_type`; removed ids are not representable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[allow(non_camel_case_types, missing_docs)] // ggml's own spelling, which users type
pub enum TensorType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

use TensorType::*;

/// Type, name, elements per block, bytes per block: the layout table of `ggml-common.h`.
const TABLE: &[(TensorType, &str, u64, u64)] = &[
    (F32, "F32", 1, 4),
    (F16, "F16", 1, 2),
    (Q4_0, "Q4_0", 32, 18),
    (Q4_1, "Q4_1", 32, 20),
    (Q5_0, "Q5_0", 32, 22),
    (Q5_1, "Q5_1", 32, 24),
    (Q8_0, "Q8_0", 32, 34),
    (Q8_1, "Q8_1", 32, 36),
    (Q2_K, "Q2_K", 256, 84),
    (Q3_K, "Q3_K", 256, 110),
    (Q4_K, "Q4_K", 256, 144),
    (Q5_K, "Q5_K", 256, 176),
    (Q6_K, "Q6_K", 256, 210),
    (Q8_K, "Q8_K", 256, 292),
    (IQ2_XXS, "IQ2_XXS", 256, 66),
    (IQ2_XS, "IQ2_XS", 256, 74),
    (IQ3_XXS, "IQ3_XXS", 256, 98),
    (IQ1_S, "IQ1_S", 256, 50),
    (IQ4_NL, "IQ4_NL", 32, 18),
    (IQ3_S, "IQ3_S", 256, 110),
    (IQ2_S, "IQ2_S", 256, 82),
    (IQ4_XS, "IQ4_XS", 256, 136),
    (I8, "I8", 1, 1),
    (I16, "I16", 1, 2),
    (I32, "I32", 1, 4),
    (I64, "I64", 1, 8),
    (F64, "F64", 1, 8),
    (IQ1_M, "IQ1_M", 256, 56),
    (BF16, "BF16", 1, 2),
    (TQ1_0, "TQ1_0", 256, 54),
    (TQ2_0, "TQ2_0", 256, 66),
    (MXFP4, "MXFP4", 32, 17),
    (NVFP4, "NVFP4", 64, 36),
    (Q1_0, "Q1_0", 128, 18),
    (Q2_0, "Q2_0", 64, 18),
];

impl TensorType {
    /// Every type, in the order of the table.
    pub fn all() -> impl Iterator<Item = TensorType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static (TensorType, &'static str, u64, u64) {
        // The table lists every variant, which the unit test below holds.
        TABLE
            .iter()
            .find(|row| row.0 == self)
            .expect("every type has a row")
    }

    /// The type with this `enum ggml_type` id, if it may stand in a file.
    pub fn from_id(id: u32) -> Option<TensorType> {
        TABLE.iter().map(|row| row.0).find(|t| *t as u32 == id)
    }

    /// The `enum ggml_type` id.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// ggml's name in upper case, as llama.cpp's tools print it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements per block; a row's length must be a multiple of it.
    pub fn block_len(self) -> u64 {
        self.row().2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> u64 {
        self.row().3
    }

    /// Bits per element.
    pub fn bits(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// Bytes of a tensor of this type, whose first dimension is the row length, or `None` when
    /// the row does not divide into blocks or the product overflows.
    pub fn bytes(self, shape: &[u64]) -> Option<u64> {
        let row = shape.first().copied().unwrap_or(1);
        if !row.is_multiple_of(self.block_len()) {
            return None;
        }
        let row_bytes = (row / self.block_len()).checked_mul(self.block_bytes())?;
        shape
            .iter()
            .skip(1)
            .try_fold(row_bytes, |acc, n| acc.checked_mul(*n))
    }

    /// Bytes of a row of so many elements; 0 when it does not divide into blocks.
    pub fn row_bytes(self, elements: u64) -> u64 {
        self.bytes(&[elements]).unwrap_or(0)
    }

    /// Whether this is a block-quantized type, as opposed to a plain number.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name given is not a ggml type.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a ggml type; known are {known}", known = known_names())]
pub struct UnknownType(pub String);

fn known_names() -> String {
    TensorType::all()
        .map(|t| t.name().to_ascii_lowercase())
        .collect::<Vec<_>>()
        .join(", ")
}

impl FromStr for TensorType {
    type Err = UnknownType;

    /// Reads a type's name in any case (`q4_k`, `Q4_K`).
    fn from_str(s: &str) -> Result<Self, UnknownType> {
        TABLE
            .iter()
            .find(|row| row.1.eq_ignore_ascii_case(s))
            .map(|row| row.0)
            .ok_or_else(|| UnknownType(s.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_round_trip() {
        for t in TensorType::all() {
            assert_eq!(TensorType::from_id(t.id()), Some(t));
            assert_eq!(t.name().to_lowercase().parse::<TensorType>(), Ok(t));
        }
        assert_eq!(TensorType::from_id(4), None);
        assert!("q4_k_m".parse::<TensorType>().is_err());
    }

    #[test]
    fn bytes_refuse_a_partial_block_and_an_overflow() {
        assert_eq!(Q4_K.bytes(&[256, 3]), Some(432));
        assert_eq!(Q4_K.bytes(&[255, 3]), None);
        assert_eq!(F32.bytes(&[u64::MAX / 2, 3]), None);
    }
}
