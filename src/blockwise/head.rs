//! The output layer of a model, which is no part of a block.

use std::ops::Range;

use dwindle_formats::gguf::{TensorType, Value};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::embedding::NAME as EMBEDDING;
use crate::ggml;
use crate::plan::{Subject, TensorError, TransformError};

/// The output layer's own weight.
pub const OUTPUT: &str = "output.weight";

/// What it adds.
pub const OUTPUT_BIAS: &str = "output.bias";

/// Architectures whose graphs multiply logits by `logit_scale`; others divide by it.
const MULTIPLIED: [&str; 2] = ["command-r", "cohere2"];

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
    bias: Option<usize>,
    scale: f32,
    /// What logits are held between.
    cap: Option<f32>,
}

impl<'a> Head<'a> {
    /// The head of a model.
    pub fn new(subject: Subject<'a>) -> Option<Head<'a>> {
        let model = subject.model;
        let place = |name: &str| model.tensors.iter().position(|t| t.name == name);
        let number = |name: &str| {
            let found = model
                .metadata
                .get(&format!("{}.{name}", model.architecture));
            found
                .and_then(Value::as_f64)
                .filter(|n| *n != 0.0)
                .map(|n| n as f32)
        };
        let multiplied = MULTIPLIED.contains(&model.architecture.as_str());
        let scale = number("logit_scale").map(|s| if multiplied { s } else { 1.0 / s });
        Some(Head {
            tensor: place(OUTPUT).or(place(EMBEDDING))?,
            bias: place(OUTPUT_BIAS),
            scale: scale.unwrap_or(1.0),
            cap: number("final_logit_softcapping"),
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
        self.finish(&mut logits)
            .map_err(TensorError::of::<TransformError>(OUTPUT_BIAS))?;
        Ok(logits)
    }

    /// Adds the bias, and holds logits between the caps.
    fn finish(&self, logits: &mut [f32]) -> Result<(), TransformError> {
        if let Some(bias) = self.bias {
            let tensor = &self.subject.model.tensors[bias];
            let bias = self.subject.rows(tensor, 0..1)?;
            let add = |row: &mut [f32]| row.iter_mut().zip(&bias).for_each(|(v, b)| *v += b);
            logits.par_chunks_mut(bias.len()).for_each(add);
        }
        if let Some(cap) = self.cap {
            logits
                .par_iter_mut()
                .for_each(|v| *v = cap * (*v / cap).tanh());
        }
        Ok(())
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
