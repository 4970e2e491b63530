//! What stands for a model in files of measurements, and weights rounded for them.

use dwindle_formats::container::hex;
use dwindle_formats::gguf::{Metadata, TensorType, encode_header};
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

/// A digest of a model: its parameters and its tokenizer, and its tensors, of each of which some rows stand for
/// all. Its name does not count.
///
/// # Errors
/// Values that can't be read.
pub fn fingerprint(subject: &Subject<'_>) -> Result<String, BudgetError> {
    let mut hash = Sha256::new();
    hash.update(encode_header(&parameters(&subject.model.metadata), &[], 8));
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

/// What decides what a model computes, in the order of the keys.
fn parameters(metadata: &Metadata) -> Metadata {
    let counts = |key: &str| {
        let is_name = key.starts_with("general.") && key != "general.architecture";
        !is_name && !key.starts_with("tokenizer.chat_template")
    };
    let mut all: Vec<_> = metadata.iter().filter(|(key, _)| counts(key)).collect();
    all.sort_by_key(|(key, _)| *key);
    let mut sorted = Metadata::new();
    all.into_iter()
        .for_each(|(key, value)| sorted.set(key, value.clone()));
    sorted
}

/// A tensor in its probe's type. It takes less memory than its values.
pub(super) struct Probed {
    ty: TensorType,
    row: usize,
    bytes: Vec<u8>,
}

impl Probed {
    /// Rounds a tensor.
    pub fn new(
        subject: &Subject<'_>,
        tensor: &ModelTensor,
        ty: TensorType,
        importance: &[f32],
    ) -> Result<Probed, TransformError> {
        let row = tensor.shape[0] as usize;
        let per_slice = tensor.shape[1] as usize;
        let sets = importance.len() / row;
        let mut bytes = vec![0; tensor.row_count() as usize * ty.row_bytes(row as u64) as usize];
        let of_rows = |(part, out): (usize, &mut [u8])| -> Result<(), TransformError> {
            let first = part * ROWS;
            let rows = first as u64..tensor.row_count().min((first + ROWS) as u64);
            let values = subject.rows(tensor, rows)?;
            // Rows of two slices may meet in one part.
            let mut out = out.chunks_mut(ty.row_bytes(row as u64) as usize);
            for (i, values) in values.chunks(row).enumerate() {
                let set = if sets == 1 {
                    0
                } else {
                    (first + i) / per_slice
                };
                let importance = importance.get(set * row..(set + 1) * row);
                if let Some(out) = out.next() {
                    ggml::quantize(ty, values, row, importance, out)?;
                }
            }
            Ok(())
        };
        let part = ROWS * ty.row_bytes(row as u64) as usize;
        bytes
            .par_chunks_mut(part)
            .enumerate()
            .try_for_each(of_rows)?;
        Ok(Probed { ty, row, bytes })
    }

    /// Its values.
    pub fn values(&self) -> Result<Vec<f32>, TransformError> {
        let row_bytes = self.ty.row_bytes(self.row as u64) as usize;
        let mut values = vec![0f32; self.bytes.len() / row_bytes * self.row];
        let parts = values.par_chunks_mut(ROWS * self.row);
        let bytes = self.bytes.par_chunks(ROWS * row_bytes);
        parts.zip(bytes).try_for_each(|(values, bytes)| {
            Ok::<_, TransformError>(ggml::dequantize(self.ty, bytes, values)?)
        })?;
        Ok(values)
    }
}
