//! Compares a file's tensors with the checkpoint that they came from.

use dwindle_formats::container::Container;
use rayon::prelude::*;

use crate::architecture::ModelTensor;
use crate::mapped::Mapping;
use crate::plan::{Subject, TensorError};
use crate::runtime::{StockError, decode_values};
use crate::writing::ErrorSums;

/// A tensor's distance from the checkpoint.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TensorDifference {
    /// The tensor.
    pub name: String,
    /// How it was made.
    pub method: String,
    /// Relative error in the Frobenius norm.
    pub relative_error: f32,
}

/// Decodes every tensor and compares it with the checkpoint's, in parallel.
///
/// # Errors
/// Damaged data, or a tensor that the checkpoint lacks or has in another shape.
pub fn compare(
    container: &Container,
    bytes: &Mapping,
    subject: &Subject<'_>,
    seen: &(dyn Fn() + Sync),
) -> Result<Vec<TensorDifference>, StockError> {
    let by_name = subject.model.by_name();
    container
        .plan
        .tensors
        .par_iter()
        .enumerate()
        .map(|(index, stored)| {
            let tensor = by_name.get(stored.name.as_str()).copied();
            let sums = difference(container, bytes, (subject, tensor), index)?;
            seen();
            Ok(TensorDifference {
                name: stored.name.clone(),
                method: stored.method.clone(),
                relative_error: sums.relative(),
            })
        })
        .collect()
}

fn difference(
    container: &Container,
    bytes: &Mapping,
    (subject, tensor): (&Subject<'_>, Option<&ModelTensor>),
    index: usize,
) -> Result<ErrorSums, StockError> {
    let stored = &container.plan.tensors[index];
    let Some(tensor) = tensor.filter(|t| t.shape == stored.shape) else {
        return Err(StockError::NotInCheckpoint {
            tensor: stored.name.clone(),
            shape: stored.shape.clone(),
        });
    };
    let original = subject
        .values(tensor)
        .map_err(TensorError::of(&stored.name))?;
    tensor.release(subject.source);
    let decoded = decode_values(container, bytes, index)?;
    Ok(ErrorSums::of(&original, &decoded))
}
