//! Elements of floating-point types.

use dwindle_formats::gguf::TensorType;
use half::{bf16, f16};

/// The elements of F16, of BF16, or else of F32, little-endian.
pub fn floats(bytes: &[u8], ty: TensorType) -> Vec<f32> {
    let halves = bytes.as_chunks::<2>().0.iter();
    match ty {
        TensorType::F16 => halves.map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        TensorType::BF16 => halves.map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => {
            let singles = bytes.as_chunks::<4>().0.iter();
            singles.map(|b| f32::from_le_bytes(*b)).collect()
        }
    }
}
