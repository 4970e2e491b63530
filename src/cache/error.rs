//! Why a codebook can't be calibrated, or a packed state not be measured.

use crate::eval::EvalError;
use crate::kv::KvError;
use crate::llama::model::LlamaError;

/// Why a codebook can't be calibrated, or a packed state not be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum CacheError {
    #[error(transparent)]
    Llama(#[from] LlamaError),
    #[error(transparent)]
    Kv(#[from] KvError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(
        "the text has {tokens} tokens, expected at least {needed}; name a longer text, or ask for fewer tokens"
    )]
    TextTooShort { tokens: usize, needed: usize },
    #[error(
        "the model keeps no keys and values that a codebook could be made for: none at all, or of layers whose heads differ or \
         whose window is as long as those of the text"
    )]
    NoAttention,
    #[error("it was saved of a `{found}`, the model is a `{expected}`")]
    OtherArchitecture { found: String, expected: String },
    #[error("it does not say which tokens were read, so nothing can follow it")]
    NoTokens,
    #[error("the model keeps its text in another form than the file: {0}")]
    OtherForm(&'static str),
    #[error("it has {tokens} tokens, the context {ctx}")]
    TooLong { tokens: usize, ctx: usize },
    #[error("another server parks its texts in `{}`; name another folder", .0.display())]
    Shared(std::path::PathBuf),
    #[error(
        "its {tokens} tokens take {len} bytes before they are packed, more than all parked texts may take ({most})"
    )]
    NoRoom { tokens: usize, len: u64, most: u64 },
    #[error("a window of {0} tokens is too short, expected at least 16")]
    Window(usize),
}
