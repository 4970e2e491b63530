//! What is computed of elements, and how they are moved within rows.

use dwindle_checkpoint::floats;
use dwindle_formats::gguf::TensorType;
use half::{bf16, f16};

/// Rows whose columns are put together of blocks of other rows' columns.
pub(super) fn in_blocks(
    rows: &[u8],
    row: usize,
    (each, blocks): (u64, &[u64]),
    ty: TensorType,
) -> Vec<u8> {
    let unit = (each / ty.block_len() * ty.block_bytes()) as usize;
    let mut out = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(row.max(1)) {
        for block in blocks {
            out.extend_from_slice(&row[*block as usize * unit..][..unit]);
        }
    }
    out
}

/// The elements of a floating-point type, one added to each.
pub(super) fn plus_one(bytes: &[u8], ty: TensorType) -> Vec<u8> {
    let sums = floats(bytes, ty).into_iter().map(|v| v + 1.0);
    match ty {
        TensorType::F16 => sums.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
        _ => sums.flat_map(f32::to_le_bytes).collect(),
    }
}

/// Multiplies the elements of a floating-point type, and rounds them to it.
pub(super) fn multiply(bytes: &mut [u8], ty: TensorType, scale: f32) {
    match ty {
        TensorType::F16 => bytes.as_chunks_mut().0.iter_mut().for_each(|b| {
            *b = f16::from_f32(f16::from_le_bytes(*b).to_f32() * scale).to_le_bytes();
        }),
        TensorType::BF16 => bytes.as_chunks_mut().0.iter_mut().for_each(|b| {
            *b = bf16::from_f32(bf16::from_le_bytes(*b).to_f32() * scale).to_le_bytes();
        }),
        _ => bytes.as_chunks_mut().0.iter_mut().for_each(|b| {
            *b = (f32::from_le_bytes(*b) * scale).to_le_bytes();
        }),
    }
}
