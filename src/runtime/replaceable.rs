//! A checkpoint in memory whose weights can be replaced, to measure what that costs.

use std::error::Error;
use std::path::Path;

use super::StockError;
use super::load::{LoadError, load_as};
use crate::ggml::GgmlError;
use crate::llama::model::{Model, ModelOptions};
use crate::plan::{Base, Recipe, TensorError, TransformError};

/// Loads a checkpoint in F16, or in BF16 where it has values that F16 can't hold, as llama.cpp's own
/// copy.
///
/// # Errors
/// As [`load_as`].
pub fn load_replaceable(
    checkpoint: &Path,
    options: &ModelOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Model, LoadError> {
    match load_as(checkpoint, &Recipe::of(Base::F16), options, progress) {
        Err(error) if is_unheld(&error) => {
            load_as(checkpoint, &Recipe::of(Base::BF16), options, progress)
        }
        loaded => loaded,
    }
}

/// Whether a type could not hold a finite value.
fn is_unheld(error: &LoadError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(StockError::Tensor(TensorError { source, .. })) = error.downcast_ref()
            && let TransformError::Ggml(GgmlError::Value { value, .. }) = source
        {
            return value.is_finite();
        }
        cause = error.source();
    }
    false
}
