//! The output layer of a model, which is no part of a block.

use std::ops::Range;

use dwindle_formats::gguf::{TensorType, Value};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::ggml;
use crate::plan::{Subject, TensorError, TransformError};

/// Rows of the output layer's weight that are in memory at a time.
const ROWS: usize = 4096;

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

    /// Elements of a row that it reads.
    pub fn width(&self) -> usize {
        self.subject.model.tensors[self.tensor].row_len() as usize
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.subject.model.tensors[self.tensor].row_count() as usize
    }

    /// The logits of rows, one row of the vocabulary's tokens after another.
    ///
    /// # Errors
    /// Values that can't be read.
    pub fn logits(&self, rows: &[f32], probe: Option<Probe<'_>>) -> Result<Vec<f32>, TensorError> {
        let tensor = &self.subject.model.tensors[self.tensor];
        let (n, vocabulary) = (self.width(), self.vocabulary());
        let tokens = rows.len() / n;
        let mut logits = vec![0f32; tokens * vocabulary];
        let all = MatMut::from_row_major_slice_mut(&mut logits, tokens, vocabulary);
        let mut rest = all;
        let x = MatRef::from_row_major_slice(rows, tokens, n);
        for first in (0..vocabulary).step_by(ROWS) {
            let count = ROWS.min(vocabulary - first);
            let w = self.weights(first as u64..(first + count) as u64, probe);
            let w = w.map_err(TensorError::of::<TransformError>(&tensor.name))?;
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
}
