//! Rows on their way into a quantized type, rounded so that their layer's output is nearest.

use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use dwindle_formats::gguf::TensorType;

use super::transform::ErrorSums;
use crate::architecture::ModelTensor;
use crate::ggml;
use crate::method::error::MethodError;
use crate::method::rounding::{Curvature, DAMPING, round};
use crate::plan::{Subject, TransformError};

/// Factored Grams that stay in memory: that of the tensor under way, and the next one's.
const KEPT: usize = 2;

type Slot = Arc<OnceLock<Result<Curvature, MethodError>>>;

/// Rounds rows of tensors. Tensors that read the same input share its factored Gram.
pub struct Rounder<'a> {
    subject: Subject<'a>,
    /// By the first of the weights that read an input, and the expert; the latest last.
    curvatures: Mutex<Vec<((String, usize), Slot)>>,
}

impl<'a> Rounder<'a> {
    /// Of the tensors of a subject.
    pub fn new(subject: Subject<'a>) -> Rounder<'a> {
        Rounder {
            subject,
            curvatures: Mutex::default(),
        }
    }

    /// Rows of a tensor in a quantized type, with what that cost. Slices of a stack are rounded each
    /// for its own input.
    ///
    /// # Errors
    /// Values that can't be read or written in the type, damaged statistics.
    pub fn rows(
        &self,
        tensor: &ModelTensor,
        ty: TensorType,
        rows: Range<u64>,
    ) -> Result<(Vec<u8>, ErrorSums), TransformError> {
        let w = self.subject.rows(tensor, rows.clone())?;
        let row_len = tensor.shape[0] as usize;
        let per_slice = tensor.rows_per_slice();
        let mut bytes = Vec::new();
        let mut row = rows.start;
        while row < rows.end {
            let slice = (row / per_slice) as usize;
            let end = ((row / per_slice + 1) * per_slice).min(rows.end);
            let at = (row - rows.start) as usize * row_len..(end - rows.start) as usize * row_len;
            bytes.extend(self.matrix(tensor, slice, ty, &w[at], (end - row) as usize)?);
            row = end;
        }
        let mut back = vec![0f32; w.len()];
        ggml::dequantize(ty, &bytes, &mut back)?;
        Ok((bytes, ErrorSums::of(&w, &back)))
    }

    /// Rows of any places as a quantized type holds them: what llama.cpp looks up of an embedding.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub fn looked_up(
        &self,
        tensor: &ModelTensor,
        ty: TensorType,
        places: &[u64],
    ) -> Result<Vec<f32>, TransformError> {
        let mut w = Vec::new();
        for row in places {
            w.extend(self.subject.rows(tensor, *row..*row + 1)?);
        }
        let bytes = self.matrix(tensor, 0, ty, &w, places.len())?;
        ggml::dequantize(ty, &bytes, &mut w)?;
        Ok(w)
    }

    /// Rows of one slice.
    fn matrix(
        &self,
        tensor: &ModelTensor,
        slice: usize,
        ty: TensorType,
        w: &[f32],
        rows: usize,
    ) -> Result<Vec<u8>, TransformError> {
        let row_len = tensor.shape[0] as usize;
        let importance = self
            .subject
            .measured
            .importance
            .and_then(|i| i.columns(&tensor.name, row_len, slice));
        let Some(gram) = self.subject.measured.gram(&tensor.name, slice)? else {
            return Ok(ggml::quantized(ty, w, row_len, importance)?);
        };
        let slot = self.slot(tensor, slice);
        let made = slot.get_or_init(|| Curvature::new(gram, DAMPING));
        let curvature = made.as_ref().map_err(Clone::clone)?;
        Ok(round(w, rows, curvature, ty, importance)?)
    }

    fn slot(&self, tensor: &ModelTensor, slice: usize) -> Slot {
        let group = self
            .subject
            .measured
            .statistics
            .and_then(|s| s.group(&tensor.name));
        let first = group.and_then(|g| g.weights.first());
        let key = (first.unwrap_or(&tensor.name).clone(), slice);
        let mut all = self
            .curvatures
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = all.iter().position(|(k, _)| *k == key) {
            let found = all.remove(at);
            all.push(found);
        } else {
            all.push((key, Slot::default()));
        }
        if all.len() > KEPT {
            all.remove(0);
        }
        all[all.len() - 1].1.clone()
    }
}
