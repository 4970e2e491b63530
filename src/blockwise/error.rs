//! Why a walk ends.

use crate::llama::error::BoxError;
use crate::llama::model::LlamaError;
use crate::method::error::MethodError;

/// Why a walk ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum WalkError {
    #[error(transparent)]
    Llama(#[from] LlamaError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Method(#[from] MethodError),
    #[error("a block can't be run by itself: its graph has no `{node}`")]
    Node { node: String },
    #[error(transparent)]
    Treatment(BoxError),
}
