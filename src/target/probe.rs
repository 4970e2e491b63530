//! What stands for a model in files of measurements, and weights rounded for them.

use dwindle_formats::container::hex;
use dwindle_formats::gguf::TensorType;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::BudgetError;
use crate::architecture::ModelTensor;
use crate::ggml;
use crate::plan::{Subject, TensorError, TransformError};

/// Rows that are rounded by one thread at a time.
const ROWS: usize = 256;

/// Rows of a tensor that stand for all, from its first to its last.
const SAMPLED_ROWS: u64 = 16;

/// A digest of a model: its tensors, of each of which some rows stand for all.
///
/// # Errors
/// Values that can't be read.
pub fn fingerprint(subject: &Subject<'_>) -> Result<String, BudgetError> {
    let mut hash = Sha256::new();
    for tensor in &subject.model.tensors {
        hash.update((tensor.name.len() as u64).to_le_bytes());
        hash.update(&tensor.name);
        hash.update((tensor.shape.len() as u64).to_le_bytes());
        tensor
            .shape
            .iter()
            .for_each(|n| hash.update(n.to_le_bytes()));
        let rows = tensor.row_count();
        let count = SAMPLED_ROWS.min(rows);
        for i in 0..count {
            let row = i * (rows - 1) / (count - 1).max(1);
            let row = subject.rows(tensor, row..row + 1);
            let row = row.map_err(TensorError::of(&tensor.name))?;
            row.iter().for_each(|v| hash.update(v.to_le_bytes()));
        }
    }
    Ok(hex(&hash.finalize()))
}

/// A tensor as its probe's type holds it.
pub(super) fn probed(
    subject: &Subject<'_>,
    tensor: &ModelTensor,
    ty: TensorType,
    importance: &[f32],
) -> Result<Vec<f32>, TransformError> {
    let mut w = subject.values(tensor)?;
    let row = tensor.shape[0] as usize;
    let per_slice = tensor.shape[1] as usize * row;
    for (slice, w) in w.chunks_mut(per_slice).enumerate() {
        let sets = importance.len() / row;
        let set = if sets == 1 { 0 } else { slice };
        let importance = importance.get(set * row..(set + 1) * row);
        w.par_chunks_mut(ROWS * row).try_for_each(|w| {
            let bytes = ggml::quantized(ty, w, row, importance)?;
            ggml::dequantize(ty, &bytes, w)
        })?;
    }
    Ok(w)
}
