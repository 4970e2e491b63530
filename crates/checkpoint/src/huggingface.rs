//! A Hugging Face folder as a source: `config.json` and one or many files of weights.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use dwindle_formats::gguf::TensorType;
use dwindle_mapped::Mapping;
use fs_err as fs;
use safetensors::Dtype;
use serde_json::{Map, Value};

use super::quantized::{self, Method, Tensor};
use super::raw::Raw;
use super::reading::{read_file, read_json};
use super::shards::Shards;
use super::{Error, Source, SourceFile, SourceTensor, cache, contents};

/// Endings of buffers that old checkpoints store beside the weights; every model rebuilds them.
const BUFFERS: [&str; 4] = [
    ".position_ids",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
];

/// An open Hugging Face folder.
#[derive(Debug)]
pub struct HuggingFace {
    dir: PathBuf,
    config: Map<String, Value>,
    shards: Vec<Mapping>,
    files: Vec<SourceFile>,
    tensors: Vec<SourceTensor>,
    stored: Vec<Tensor>,
}

impl HuggingFace {
    /// Opens a folder: reads `config.json`, maps every shard and checks every header.
    ///
    /// # Errors
    /// When a file is missing, damaged or of an unsupported kind.
    pub fn open(dir: &Path) -> Result<HuggingFace, Error> {
        HuggingFace::open_as(dir, true)
    }

    /// As [`HuggingFace::open`], with all matrices of codes in F32, also those that a type of ggml's holds, for
    /// models that have them in other forms.
    ///
    /// # Errors
    /// As [`HuggingFace::open`].
    pub fn open_in_floats(dir: &Path) -> Result<HuggingFace, Error> {
        HuggingFace::open_as(dir, false)
    }

    fn open_as(dir: &Path, exact: bool) -> Result<HuggingFace, Error> {
        let config = match read_json(&dir.join("config.json"))? {
            Some(Value::Object(map)) => map,
            Some(_) => {
                return Err(Error::Json {
                    path: dir.join("config.json"),
                    problem: "expected an object".into(),
                });
            }
            None => return Err(Error::NoConfig(dir.to_path_buf())),
        };
        let method = Method::of(dir, &config, &|file| read_json(&dir.join(file)))?;
        let shards = Shards::of(dir)?;
        let mut this = HuggingFace {
            dir: dir.to_path_buf(),
            config,
            shards: Vec::new(),
            files: Vec::new(),
            tensors: Vec::new(),
            stored: Vec::new(),
        };
        let raws = this.map(&shards)?;
        for tensor in quantized::gather(method.as_ref(), raws, &this.shards)? {
            this.tensors.push(described(&tensor, &this, exact)?);
            this.stored.push(tensor);
        }
        Ok(this)
    }

    /// Maps every file, and lists what they hold.
    fn map(&mut self, shards: &Shards) -> Result<Vec<Raw>, Error> {
        let mut seen: HashMap<String, &str> = HashMap::new();
        let mut raws = Vec::new();
        for name in &shards.names {
            let path = self.dir.join(name);
            self.files.push(SourceFile::of(&path)?);
            let map = Mapping::open(&path)?;
            let all = contents::read(&path, shards.kind, &map, self.shards.len())?;
            for raw in &all {
                shards.check_placed(&raw.name, name)?;
                if let Some(first) = seen.insert(raw.name.clone(), name) {
                    return Err(Error::DuplicateTensor {
                        index: shards.kind.index(),
                        tensor: raw.name.clone(),
                        first: first.to_string(),
                        second: name.to_string(),
                    });
                }
                let is_buffer = BUFFERS.iter().any(|ending| raw.name.ends_with(ending));
                if !is_buffer && !contents::is_tied(raw, &all) {
                    raws.push(raw.clone());
                }
            }
            self.shards.push(map);
        }
        for (tensor, shard) in shards.index.iter().flatten() {
            if !seen.contains_key(tensor) {
                return Err(Error::MissingTensor {
                    index: shards.kind.index(),
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
        }
        Ok(raws)
    }

    /// Whether a matrix of codes is in a type of ggml's.
    pub fn has_codes(&self) -> bool {
        let pairs = self.tensors.iter().zip(&self.stored);
        let mut types = pairs.filter(|(_, stored)| matches!(stored, Tensor::Quantized(_)));
        types.any(|(tensor, _)| tensor.ty != TensorType::F32)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What `config.json` says.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// The model's name as far as the folder gives it: `ORG/NAME` in the Hugging Face cache, the
    /// folder's own name anywhere else.
    pub fn id(&self) -> String {
        if let Some(name) = cache::name_of_snapshot(&self.dir) {
            return name;
        }
        let name = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
        name(&self.dir)
            .or_else(|| name(&fs::canonicalize(&self.dir).ok()?))
            .unwrap_or_default()
    }

    /// A JSON file of the folder, or `None` when it is not there.
    ///
    /// # Errors
    /// When the file can't be read or is not JSON.
    pub fn json(&self, file: &str) -> Result<Option<Value>, Error> {
        read_json(&self.dir.join(file))
    }

    /// A file of the folder, or `None` when it is not there.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn read(&self, file: &str) -> Result<Option<Vec<u8>>, Error> {
        read_file(&self.dir.join(file))
    }
}

/// A tensor as the rest of the program sees it.
fn described(tensor: &Tensor, folder: &HuggingFace, exact: bool) -> Result<SourceTensor, Error> {
    let raw = match tensor {
        Tensor::Plain(raw) => raw,
        Tensor::Quantized(matrix) => {
            return Ok(SourceTensor {
                name: matrix.name().to_string(),
                ty: match exact {
                    true => matrix.exact(&folder.shards),
                    false => TensorType::F32,
                },
                shape: matrix.shape(),
            });
        }
    };
    let ty = match raw.dtype {
        Dtype::F32 => TensorType::F32,
        Dtype::F16 => TensorType::F16,
        Dtype::BF16 => TensorType::BF16,
        other => {
            let path = folder.files[raw.shard].path();
            return Err(Error::ElementType {
                tensor: raw.name.clone(),
                file: path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into(),
                found: format!("{other:?}"),
                quantized: quantized::SUPPORTED,
            });
        }
    };
    Ok(SourceTensor {
        name: raw.name.clone(),
        ty,
        shape: raw.shape.iter().rev().map(|n| *n as u64).collect(),
    })
}

impl Source for HuggingFace {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn files(&self) -> &[SourceFile] {
        &self.files
    }

    fn bytes(&self, index: usize, span: Range<usize>) -> Cow<'_, [u8]> {
        match &self.stored[index] {
            Tensor::Plain(raw) => Cow::Borrowed(&raw.bytes(&self.shards)[span]),
            Tensor::Quantized(matrix) => {
                Cow::Owned(matrix.read(&self.shards, self.tensors[index].ty, span))
            }
        }
    }

    fn release(&self, index: usize) {
        match &self.stored[index] {
            Tensor::Plain(raw) => self.shards[raw.shard].release(raw.range.clone()),
            Tensor::Quantized(matrix) => matrix.release(&self.shards),
        }
    }
}
