//! Why a checkpoint can't become a llama.cpp model.

use dwindle_checkpoint as checkpoint;

/// Why a checkpoint can't be seen as a llama.cpp model. Each message is one sentence that says
/// what was found and what is supported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum Error {
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    #[error("llama.cpp can't compute models of the class `{found}`: {why}; no file can hold one")]
    Inexpressible { found: String, why: &'static str },
    #[error(
        "architecture `{found}` is not supported; supported are {supported}; if llama.cpp's own converter knows it, convert it to F16 or BF16 there, and give the GGUF file"
    )]
    Architecture { found: String, supported: String },
    #[error(
        "`config.json` names no architecture; expected `architectures` with one of {supported}"
    )]
    NoArchitecture { supported: String },
    #[error("`{file}` has {found} for `{key}`, expected {expected}")]
    Config {
        file: &'static str,
        key: String,
        found: String,
        expected: String,
    },
    #[error("{found} is not supported for architecture `{architecture}`; supported is {supported}")]
    Feature {
        architecture: String,
        found: String,
        supported: String,
    },
    #[error(
        "the adapter changes `{tensor}` in a way that llama.cpp's adapters can't express; merge it into the checkpoint instead"
    )]
    AdapterForm { tensor: String },
    #[error(
        "tensor `{tensor}` has no place in architecture `{architecture}`; is `config.json` that of another model?"
    )]
    UnknownTensor {
        tensor: String,
        architecture: String,
    },
    #[error(
        "tensor `{tensor}` is missing, which `config.json` calls for; the checkpoint is incomplete, download it again"
    )]
    MissingTensor { tensor: String },
    #[error(
        "tensor `{tensor}` has shape {found:?}, `config.json` calls for {expected:?} (slowest dimension first)"
    )]
    Shape {
        tensor: String,
        found: Vec<u64>,
        expected: Vec<u64>,
    },
    #[error(
        "the tensors that `{tensor}` is made of differ in shape or element type from one another"
    )]
    UnequalParts { tensor: String },
    #[error("tensor `{tensor}` is there twice, under another name besides")]
    Twice { tensor: String },
    #[error("`{file}` can't be used: {problem}")]
    Tokenizer { file: &'static str, problem: String },
    #[error(
        "the checkpoint has no tokenizer: expected `tokenizer.json` or a SentencePiece `tokenizer.model`{hint}"
    )]
    NoTokenizer { hint: &'static str },
    #[error(
        "the pre-tokenizer in `tokenizer.json` is unknown: found {found} (fingerprint {fingerprint}), supported are those that llama.cpp's converter knows and {supported}"
    )]
    PreTokenizer {
        found: String,
        fingerprint: String,
        supported: String,
    },
    #[error("`{path}` has no text in `{key}`, so llama.cpp can't run it")]
    Gguf { path: String, key: &'static str },
}
