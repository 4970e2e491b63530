//! The divergence of what streams give behind the last block.

use std::ops::Range;

use dwindle_formats::gguf::{TensorType, Value};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::BudgetError;
use crate::ggml;
use crate::plan::{Subject, TensorError, TransformError};

/// Rows of the output layer's weight that are in memory at a time.
const ROWS: usize = 4096;

/// Tokens whose logits are in memory at a time.
const TOKENS: usize = 256;

/// A type in which the output layer's weight is rounded.
#[derive(Clone, Copy)]
pub struct Probe<'a> {
    /// The type.
    pub ty: TensorType,
    /// Weights of the columns; none if empty.
    pub importance: &'a [f32],
}

/// The output layer of a model: what makes logits of normed rows.
pub struct Head<'a> {
    subject: Subject<'a>,
    /// Its weight's position among the tensors: the embedding's where it has none of its own.
    pub tensor: usize,
    scale: f32,
}

impl<'a> Head<'a> {
    /// The head of a model.
    pub fn new(subject: Subject<'a>) -> Option<Head<'a>> {
        let model = subject.model;
        let place = |name: &str| model.tensors.iter().position(|t| t.name == name);
        let key = format!("{}.logit_scale", model.architecture);
        let scale = model.metadata.get(&key).and_then(Value::as_f64);
        Some(Head {
            tensor: place("output.weight").or(place("token_embd.weight"))?,
            // Granite's graph divides by it.
            scale: scale.filter(|s| *s != 0.0).map_or(1.0, |s| 1.0 / s as f32),
            subject,
        })
    }

    /// The logits of rows.
    fn logits(&self, rows: &[f32], probe: Option<Probe<'_>>) -> Result<Vec<f32>, BudgetError> {
        let tensor = &self.subject.model.tensors[self.tensor];
        let n = tensor.row_len() as usize;
        let vocabulary = tensor.row_count() as usize;
        let tokens = rows.len() / n;
        let mut logits = vec![0f32; tokens * vocabulary];
        let all = MatMut::from_row_major_slice_mut(&mut logits, tokens, vocabulary);
        let mut rest = all;
        let x = MatRef::from_row_major_slice(rows, tokens, n);
        for first in (0..vocabulary).step_by(ROWS) {
            let count = ROWS.min(vocabulary - first);
            let w = self.weights(first as u64..(first + count) as u64, probe);
            let w = w.map_err(TensorError::of(&tensor.name))?;
            let w = MatRef::from_row_major_slice(&w, count, n);
            let (now, later) = rest.split_at_col_mut(count);
            matmul(
                now,
                Accum::Replace,
                x,
                w.transpose(),
                self.scale,
                Par::rayon(0),
            );
            rest = later;
        }
        tensor.release(self.subject.source);
        Ok(logits)
    }

    /// Rows of the weight, as a type holds them.
    fn weights(
        &self,
        rows: Range<u64>,
        probe: Option<Probe<'_>>,
    ) -> Result<Vec<f32>, TransformError> {
        let tensor = &self.subject.model.tensors[self.tensor];
        let mut w = self.subject.rows(tensor, rows)?;
        if let Some(Probe { ty, importance }) = probe {
            let n = tensor.row_len() as usize;
            let importance = (!importance.is_empty()).then_some(importance);
            w.par_chunks_mut(n * 64).try_for_each(|w| {
                let bytes = ggml::quantized(ty, w, n, importance)?;
                ggml::dequantize(ty, &bytes, w)
            })?;
        }
        Ok(w)
    }

    /// The mean KL divergence of the predictions of each of `others` from those of `base`: normed rows of
    /// the same tokens, and a type in which the output layer is rounded.
    ///
    /// # Errors
    /// Values that can't be read.
    pub fn divergences(
        &self,
        base: &[f32],
        others: &[(&[f32], Option<Probe<'_>>)],
    ) -> Result<Vec<f64>, BudgetError> {
        let tensor = &self.subject.model.tensors[self.tensor];
        let n = tensor.row_len() as usize;
        let vocabulary = tensor.row_count() as usize;
        let tokens = base.len() / n;
        let mut sums = vec![0.0; others.len()];
        for first in (0..tokens).step_by(TOKENS) {
            let rows = first * n..(first + TOKENS).min(tokens) * n;
            let expected = self.logits(&base[rows.clone()], None)?;
            for (sum, (other, probe)) in sums.iter_mut().zip(others) {
                let found = self.logits(&other[rows.clone()], *probe)?;
                let pairs = expected
                    .par_chunks(vocabulary)
                    .zip(found.par_chunks(vocabulary));
                let each: Vec<f64> = pairs.map(|(p, q)| divergence(p, q)).collect();
                *sum += each.iter().sum::<f64>();
            }
        }
        Ok(sums.into_iter().map(|s| s / tokens.max(1) as f64).collect())
    }
}

/// The KL divergence of the distribution of one row of logits from another's.
fn divergence(base: &[f32], other: &[f32]) -> f64 {
    let norm = |row: &[f32]| -> (f32, f64) {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|v| f64::from((v - most).exp())).sum();
        (most, sum)
    };
    let ((p_most, p_sum), (q_most, q_sum)) = (norm(base), norm(other));
    let shift = (q_sum / p_sum).ln() + f64::from(q_most) - f64::from(p_most);
    let terms = base.iter().zip(other).map(|(p, q)| {
        let share = f64::from((p - p_most).exp());
        share * (f64::from(*p) - f64::from(*q) + shift)
    });
    (terms.sum::<f64>() / p_sum).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::divergence;

    #[test]
    fn the_divergence_is_that_of_the_distributions() {
        let p = [0.5f64, 0.3, 0.2];
        let q = [0.2f64, 0.5, 0.3];
        let expected: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        let logits =
            |d: &[f64], by: f32| -> Vec<f32> { d.iter().map(|v| v.ln() as f32 + by).collect() };
        let found = divergence(&logits(&p, 3.0), &logits(&q, -2.0));
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        assert!(divergence(&logits(&p, 0.0), &logits(&p, 1.0)) < 1e-6);
    }
}
