//! Why a checkpoint can't be read.

use std::path::PathBuf;

use dwindle_formats::gguf::{GgufError, SplitError};
use dwindle_formats::pickle::PickleError;

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
    #[error("`{}` is not a checkpoint: {found}; give the folder with `config.json` and weights, or a GGUF file", path.display())]
    NoCheckpoint { path: PathBuf, found: String },
    #[error("`{}` has no `config.json`; it is needed to know the model's architecture", .0.display())]
    NoConfig(PathBuf),
    #[error("`{}` can't be read as weights that PyTorch saved: {source}", path.display())]
    Pickle { path: PathBuf, source: PickleError },
    #[error("`{}` has no weights; expected `model.safetensors`, or shards with `model.safetensors.index.json`, or `pytorch_model.bin`", .0.display())]
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
        "shard `{shard}` is named by `{index}` but missing in `{}` ({missing} of {shards} shards are missing); download it again",
        dir.display()
    )]
    MissingShard {
        index: &'static str,
        dir: PathBuf,
        shard: String,
        missing: usize,
        shards: usize,
    },
    #[error(
        "`{index}` places tensor `{tensor}` in shard `{shard}`, which does not hold it; download both again"
    )]
    MissingTensor {
        index: &'static str,
        tensor: String,
        shard: String,
    },
    #[error(
        "shard `{shard}` holds tensor `{tensor}`, which `{index}` {placed}; download both again"
    )]
    UndeclaredTensor {
        index: &'static str,
        tensor: String,
        shard: String,
        placed: String,
    },
    #[error(
        "tensor `{tensor}` is in both `{first}` and `{second}`, and no `{index}` says which counts; download the checkpoint again"
    )]
    DuplicateTensor {
        index: &'static str,
        tensor: String,
        first: String,
        second: String,
    },
    #[error("`{}` is not a valid safetensors file: {problem}; download it again", path.display())]
    Safetensors { path: PathBuf, problem: String },
    #[error(
        "tensor `{tensor}` in `{file}` has element type {found}, and nothing in the folder says how to read it; supported are F32, F16 and BF16, and {quantized}; use the original, unquantized checkpoint"
    )]
    ElementType {
        tensor: String,
        file: String,
        found: String,
        quantized: &'static str,
    },
    #[error(
        "the checkpoint `{}` is quantized in a way that can't be read ({method}, by `{file}`), supported are {supported}; use the original, unquantized checkpoint, or convert this with llama.cpp's own converter and give the GGUF file",
        dir.display()
    )]
    Quantized {
        dir: PathBuf,
        method: String,
        file: &'static str,
        supported: &'static str,
    },
    #[error(
        "tensor `{tensor}` is quantized, but {problem}; the checkpoint is damaged, or of a layout that is not supported"
    )]
    Codes { tensor: String, problem: String },
    #[error("`{}` is no adapter; expected a folder with PEFT's `adapter_config.json` and `adapter_model.safetensors`", .0.display())]
    NoAdapter(PathBuf),
    #[error("the adapter `{}` {found}; supported are PEFT's LoRA adapters; what is more than that, PEFT can merge into the checkpoint", dir.display())]
    Adapter { dir: PathBuf, found: String },
    #[error("the adapter changes `{weight}`, which {found}; was it trained on this checkpoint?")]
    AdapterWeight { weight: String, found: String },
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
