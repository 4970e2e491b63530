//! A failure with the name of its tensor.

use super::operand::TransformError;

/// Why a tensor can't be read, transformed or written.
#[derive(Debug, thiserror::Error)]
#[error("tensor `{tensor}`: {source}")]
pub struct TensorError {
    /// Its name.
    pub tensor: String,
    /// What is wrong.
    pub source: TransformError,
}

impl TensorError {
    /// Puts a tensor's name to an error.
    pub fn of<E: Into<TransformError>>(tensor: &str) -> impl Fn(E) -> TensorError + '_ {
        move |source| TensorError {
            tensor: tensor.to_string(),
            source: source.into(),
        }
    }
}
