//! What can go wrong with a model.

use std::path::PathBuf;

use dwindle_formats::gguf::GgufError;

use super::admission::Refusal;

/// Why a model can't be loaded or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum LlamaError {
    #[error("llama.cpp can't load `{name}`: {reason}")]
    Load { name: String, reason: String },
    #[error("`{name}` can't be run")]
    Refused {
        name: String,
        #[source]
        source: Refusal,
    },
    #[error("can't load `{name}`")]
    Gguf {
        name: String,
        #[source]
        source: GgufError,
    },
    #[error("can't load `{name}`")]
    Feed {
        name: String,
        #[source]
        source: FeedError,
    },
    #[error("`{}` is a path that llama.cpp can't open: it is not UTF-8 or holds a zero byte", .0.display())]
    Path(PathBuf),
    #[error("there is no device `{name}`; llama.cpp sees {known}")]
    Device { name: String, known: String },
    #[error(
        "a model can't be shared out in {shares} parts among {devices} devices; give at most one share for each"
    )]
    Shares { shares: usize, devices: usize },
    #[error("device {main} can't be the main one: there are {devices}, counted from 0")]
    MainDevice { main: u32, devices: usize },
    #[error("the factors of `{name}` can't be split by rows; split it by layers")]
    FactorsByRow { name: String },
    #[error("no server answers at `{endpoint}`: {reason}")]
    Server { endpoint: String, reason: String },
    #[error("can't lend devices at `{endpoint}`: {reason}")]
    Lend { endpoint: String, reason: String },
    #[error("this build of llama.cpp has no RPC")]
    NoRpc,
    #[error("llama.cpp can't make a context of {ctx} tokens: {reason}")]
    Context { ctx: u32, reason: String },
    #[error("llama.cpp can't evaluate {tokens} tokens: {reason}")]
    Decode { tokens: usize, reason: String },
    #[error("{what} is {found}, the limit of this context is {limit}")]
    Batch {
        what: &'static str,
        found: i64,
        limit: i64,
    },
    #[error("the input of `{weight}` can't be observed: {reason}")]
    Activation {
        weight: String,
        reason: &'static str,
    },
    #[error("weight `{weight}` can't be replaced: {reason}")]
    Replace { weight: String, reason: String },
    #[error("can't apply adapter `{}`: {reason}; is it made for this model?", path.display())]
    Adapter { path: PathBuf, reason: String },
    #[error(
        "`{}` was changed while it was in use: it has {is} bytes, and had {was} when it was loaded; load it again, and replace a file by renaming another over it",
        path.display()
    )]
    Changed { path: PathBuf, was: u64, is: u64 },
    #[error("llama.cpp can't continue from this state: {reason}")]
    State { reason: String },
    #[error(
        "a text of {tokens} tokens can't be embedded, expected 1 to {limit}, as many as the model was trained with"
    )]
    TextLength { tokens: usize, limit: usize },
    #[error("the model is an encoder: it embeds texts, and does not continue them")]
    Encoder,
    #[error("the model has no tokenizer")]
    NoTokenizer,
    #[error("a text of {bytes} bytes is too long to be tokenized at once, the limit is {limit}")]
    TextTooLong { bytes: usize, limit: usize },
    #[error(
        "the text has {chars} characters in a row at byte {at} without a place to split it, the limit is {limit}; insert spaces or line breaks"
    )]
    Run {
        at: usize,
        chars: usize,
        limit: usize,
    },
    #[error("llama.cpp can't tokenize the text: {reason}")]
    Tokenize { reason: String },
    #[error("llama.cpp can't write token {token}: {reason}")]
    Piece { token: i32, reason: String },
    #[error("llama.cpp can't choose the next token: {0}")]
    Sample(String),
    #[error("the context can't be used any more: llama.cpp failed in it before")]
    Broken,
    #[error("the model has no chat template; give a plain prompt, or name another model")]
    NoChatTemplate,
    #[error("the model's chat template can't be applied: {0}")]
    ChatTemplate(String),
}

/// Any error of the one who produces tensors.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a tensor could not be produced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum FeedError {
    #[error("can't provide tensor `{tensor}`")]
    Produce {
        tensor: String,
        #[source]
        source: BoxError,
    },
    #[error("can't provide an operand")]
    Operand(#[source] BoxError),
    #[error("tensor `{tensor}` was provided with {found} bytes, expected {expected}")]
    Length {
        tensor: String,
        found: usize,
        expected: u64,
    },
    #[error("providing a tensor failed unexpectedly: {0}")]
    Panic(String),
    #[error("can't open a stream for the model: {0}")]
    Stream(std::io::Error),
    #[error("the tensors' sizes don't fit their types, or overflow")]
    Layout,
}
