//! A checkpoint in memory whose weights can be replaced, to measure what that costs.

use std::error::Error;
use std::path::Path;

use super::StockError;
use super::load::{LoadError, load_as, load_from};
use crate::ggml::GgmlError;
use crate::llama::model::{Model, ModelOptions};
use crate::plan::{Base, Recipe, Subject, TensorError, TransformError};

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
    narrow(|recipe| load_as(checkpoint, recipe, options, progress))
}

/// As [`load_replaceable`], of a checkpoint that has been opened. The path is its name.
///
/// # Errors
/// As [`load_as`].
pub fn load_replaceable_from(
    path: &Path,
    subject: &Subject<'_>,
    options: &ModelOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Model, LoadError> {
    narrow(|recipe| load_from(path, subject, recipe, options, progress))
}

fn narrow(mut load: impl FnMut(&Recipe) -> Result<Model, LoadError>) -> Result<Model, LoadError> {
    match load(&Recipe::of(Base::F16)) {
        Err(error) if is_unheld(&error) => load(&Recipe::of(Base::BF16)),
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
