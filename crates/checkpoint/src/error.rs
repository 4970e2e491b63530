//! Why a checkpoint can't be read.

use std::path::PathBuf;

use dwindle_formats::gguf::{GgufError, SplitError};

/// Why a checkpoint can't be read. Each message is one sentence that names the file, what was
/// found, what was expected and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum Error {
    #[error(
        "`{0}` is neither a folder nor a file here, nor the name of a model in the Hugging Face cache (looked for {1}); check the path, or fetch the model with `hf download`"
    )]
    NotFound(String, String),
    #[error(
        "`{name}` is in the Hugging Face cache at `{}`, but {problem}; fetch it again with `hf download {name}`",
        path.display()
    )]
    Cache {
        name: String,
        path: PathBuf,
        problem: String,
    },
    #[error("`{}` is not a checkpoint: {found}; give the folder with `config.json` and safetensors files, or a GGUF file", path.display())]
    NoCheckpoint { path: PathBuf, found: String },
    #[error("`{}` has no `config.json`; it is needed to know the model's architecture", .0.display())]
    NoConfig(PathBuf),
    #[error(
        "`{}` has its weights only as pickle (`{found}`), which can run code when it is read; convert it to safetensors first, for instance with `safetensors.torch.save_model`",
        dir.display()
    )]
    Pickle { dir: PathBuf, found: String },
    #[error("`{}` has no safetensors file; expected `model.safetensors`, or shards with `model.safetensors.index.json`", .0.display())]
    NoWeights(PathBuf),
    #[error("`{}` can't be read as JSON: {problem}", path.display())]
    Json { path: PathBuf, problem: String },
    #[error("`{}` has no usable `{key}`: expected {expected}", path.display())]
    Field {
        path: PathBuf,
        key: String,
        expected: &'static str,
    },
    #[error(
        "shard `{shard}` is named by `model.safetensors.index.json` but missing in `{}` ({missing} of {shards} shards are missing); download it again",
        dir.display()
    )]
    MissingShard {
        dir: PathBuf,
        shard: String,
        missing: usize,
        shards: usize,
    },
    #[error(
        "`model.safetensors.index.json` places tensor `{tensor}` in shard `{shard}`, which does not hold it; download both again"
    )]
    MissingTensor { tensor: String, shard: String },
    #[error(
        "shard `{shard}` holds tensor `{tensor}`, which `model.safetensors.index.json` {placed}; download both again"
    )]
    UndeclaredTensor {
        tensor: String,
        shard: String,
        placed: String,
    },
    #[error(
        "tensor `{tensor}` is in both `{first}` and `{second}`, and no `model.safetensors.index.json` says which counts; download the checkpoint again"
    )]
    DuplicateTensor {
        tensor: String,
        first: String,
        second: String,
    },
    #[error("`{}` is not a valid safetensors file: {problem}; download it again", path.display())]
    Safetensors { path: PathBuf, problem: String },
    #[error(
        "tensor `{tensor}` in `{file}` has element type {found}, supported are F32, F16 and BF16; use the original, unquantized checkpoint"
    )]
    ElementType {
        tensor: String,
        file: String,
        found: String,
    },
    #[error(
        "the checkpoint `{}` is already quantized ({method}, by `{file}`); use the original, unquantized checkpoint",
        dir.display()
    )]
    Quantized {
        dir: PathBuf,
        method: String,
        file: &'static str,
    },
    #[error("`{}` is a compressed container, expected a checkpoint or a stock GGUF file; export it as one first", .0.display())]
    Container(PathBuf),
    #[error("`{}`: {source}", path.display())]
    Gguf { path: PathBuf, source: GgufError },
    #[error("part {number} of {count} of the model is missing: there is no `{}`; download it too", path.display())]
    MissingPart {
        path: PathBuf,
        number: usize,
        count: usize,
    },
    #[error(transparent)]
    Split(#[from] SplitError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
