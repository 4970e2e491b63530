//! A Hugging Face folder as a source: `config.json` and one or many safetensors files.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use dwindle_formats::bounded::{self, limits};
use dwindle_formats::gguf::TensorType;
use dwindle_mapped::Mapping;
use fs_err as fs;
use safetensors::tensor::{Dtype, SafeTensors, TensorInfo};
use serde_json::{Map, Value};

use super::{Error, Source, SourceFile, SourceTensor, cache};

const INDEX: &str = "model.safetensors.index.json";

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
    places: Vec<Place>,
}

/// Where a tensor's bytes are.
#[derive(Debug)]
struct Place {
    shard: usize,
    range: Range<usize>,
}

impl HuggingFace {
    /// Opens a folder: reads `config.json`, maps every shard and checks every header.
    ///
    /// # Errors
    /// When a file is missing, damaged or of an unsupported kind.
    pub fn open(dir: &Path) -> Result<HuggingFace, Error> {
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
        refuse_quantized(dir, &config)?;
        let index = read_index(dir)?;
        let names = match &index {
            Some(index) => declared_shards(dir, index)?,
            None => found_shards(dir)?,
        };
        let mut this = HuggingFace {
            dir: dir.to_path_buf(),
            config,
            shards: Vec::new(),
            files: Vec::new(),
            tensors: Vec::new(),
            places: Vec::new(),
        };
        // Shards in order of their names and tensors by name in each: the order of the tools.
        let mut seen = BTreeMap::new();
        for name in &names {
            this.add_shard(name, index.as_ref(), &mut seen)?;
        }
        for (tensor, shard) in index.iter().flatten() {
            if !seen.contains_key(tensor) {
                return Err(Error::MissingTensor {
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
        }
        Ok(this)
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

    fn add_shard(
        &mut self,
        name: &str,
        index: Option<&BTreeMap<String, String>>,
        seen: &mut BTreeMap<String, String>,
    ) -> Result<(), Error> {
        let path = self.dir.join(name);
        self.files.push(SourceFile::of(&path)?);
        let map = Mapping::open(&path)?;
        let (header_len, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| Error::Safetensors {
                problem: explain(&e, map.len()),
                path,
            })?;
        let data_start = 8 + header_len;
        let mut infos: Vec<(String, &TensorInfo)> = metadata.tensors().into_iter().collect();
        infos.sort_by(|a, b| a.0.cmp(&b.0));
        for (tensor, info) in infos {
            check_placed(index, &tensor, name)?;
            if let Some(first) = seen.insert(tensor.clone(), name.to_string()) {
                return Err(Error::DuplicateTensor {
                    tensor,
                    first,
                    second: name.to_string(),
                });
            }
            if BUFFERS.iter().any(|ending| tensor.ends_with(ending)) {
                continue;
            }
            let ty = element_type(&tensor, info, name)?;
            let (start, end) = info.data_offsets;
            self.places.push(Place {
                shard: self.shards.len(),
                // The crate has held these offsets against the length of the file.
                range: data_start + start..data_start + end,
            });
            self.tensors.push(SourceTensor {
                name: tensor,
                ty,
                shape: info.shape.iter().rev().map(|n| *n as u64).collect(),
            });
        }
        self.shards.push(map);
        Ok(())
    }
}

/// An index that is there must place the tensor in this shard.
fn check_placed(
    index: Option<&BTreeMap<String, String>>,
    tensor: &str,
    name: &str,
) -> Result<(), Error> {
    let placed = index.map(|index| index.get(tensor).map(String::as_str));
    match placed {
        Some(Some(shard)) if shard == name => Ok(()),
        Some(other) => Err(Error::UndeclaredTensor {
            tensor: tensor.to_string(),
            shard: name.to_string(),
            placed: match other {
                Some(shard) => format!("places in `{shard}`"),
                None => "does not list".into(),
            },
        }),
        None => Ok(()),
    }
}

fn element_type(tensor: &str, info: &TensorInfo, name: &str) -> Result<TensorType, Error> {
    match info.dtype {
        Dtype::F32 => Ok(TensorType::F32),
        Dtype::F16 => Ok(TensorType::F16),
        Dtype::BF16 => Ok(TensorType::BF16),
        other => Err(Error::ElementType {
            tensor: tensor.to_string(),
            file: name.to_string(),
            found: format!("{other:?}"),
        }),
    }
}

impl Source for HuggingFace {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn files(&self) -> &[SourceFile] {
        &self.files
    }

    fn bytes(&self, index: usize) -> &[u8] {
        let place = &self.places[index];
        &self.shards[place.shard][place.range.clone()]
    }

    fn release(&self, index: usize) {
        let place = &self.places[index];
        self.shards[place.shard].release(place.range.clone());
    }
}

fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    Ok(bounded::read_if_there(path, limit_of(path))?)
}

/// How large a file of a checkpoint may be, by its name.
fn limit_of(path: &Path) -> u64 {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(INDEX) => limits::INDEX,
        Some("tokenizer.json" | "tokenizer.model" | "added_tokens.json" | "merges.txt") => {
            limits::VOCABULARY
        }
        _ => limits::CONFIGURATION,
    }
}

fn read_json(path: &Path) -> Result<Option<Value>, Error> {
    let Some(bytes) = read_file(path)? else {
        return Ok(None);
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(e) => Err(Error::Json {
            path: path.to_path_buf(),
            problem: e.to_string(),
        }),
    }
}

/// Tensor names to shards, as the index file declares them.
fn read_index(dir: &Path) -> Result<Option<BTreeMap<String, String>>, Error> {
    let path = dir.join(INDEX);
    let Some(json) = read_json(&path)? else {
        return Ok(None);
    };
    let field = |key: &str, expected| Error::Field {
        path: path.clone(),
        key: key.to_string(),
        expected,
    };
    let map = json
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| field("weight_map", "an object of tensor names and shard files"))?;
    let mut index = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard
            .as_str()
            .ok_or_else(|| field(tensor, "the name of a shard file"))?;
        // A shard is a file of this folder; a path could lead anywhere.
        if shard.is_empty() || shard.contains(['/', '\\']) {
            return Err(field(tensor, "the name of a shard file without folders"));
        }
        index.insert(tensor.clone(), shard.to_string());
    }
    Ok(Some(index))
}

fn declared_shards(dir: &Path, index: &BTreeMap<String, String>) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = index.values().cloned().collect();
    names.sort();
    names.dedup();
    let missing: Vec<&String> = names.iter().filter(|n| !dir.join(n).is_file()).collect();
    if let Some(first) = missing.first() {
        return Err(Error::MissingShard {
            dir: dir.to_path_buf(),
            shard: first.to_string(),
            missing: missing.len(),
            shards: names.len(),
        });
    }
    if names.is_empty() {
        return Err(Error::NoWeights(dir.to_path_buf()));
    }
    Ok(names)
}

/// The safetensors files of a folder without an index.
fn found_shards(dir: &Path) -> Result<Vec<String>, Error> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        files.push(entry?.file_name().to_string_lossy().into_owned());
    }
    files.sort();
    let shards: Vec<String> = files
        .iter()
        .filter(|f| f.starts_with("model") && f.ends_with(".safetensors"))
        .cloned()
        .collect();
    if !shards.is_empty() {
        check_numbering(dir, &shards)?;
        return Ok(shards);
    }
    let pickle = |f: &&String| {
        f.starts_with("pytorch_model") && f.ends_with(".bin")
            || [".pt", ".pth", ".ckpt"].iter().any(|end| f.ends_with(end))
    };
    match files.iter().find(pickle) {
        Some(found) => Err(Error::Pickle {
            dir: dir.to_path_buf(),
            found: found.clone(),
        }),
        None => Err(Error::NoWeights(dir.to_path_buf())),
    }
}

/// Without an index, `model-00001-of-00003.safetensors` still says how many shards there are.
fn check_numbering(dir: &Path, shards: &[String]) -> Result<(), Error> {
    let found: HashSet<&str> = shards.iter().map(String::as_str).collect();
    let mut checked = HashSet::new();
    for shard in shards {
        let stem = shard.trim_end_matches(".safetensors");
        let Some((head, count)) = stem.rsplit_once("-of-") else {
            continue;
        };
        let Some((prefix, number)) = head.rsplit_once('-') else {
            continue;
        };
        let Ok(expected) = count.parse::<usize>() else {
            continue;
        };
        let width = number.len();
        if !checked.insert((prefix, count, width)) {
            continue;
        }
        let name = |i: usize| format!("{prefix}-{i:0width$}-of-{count}.safetensors");
        // Every found file is one shard, so more are missing than a hostile count could make us
        // list.
        let first = (1..=expected).find(|i| !found.contains(name(*i).as_str()));
        if let Some(first) = first {
            return Err(Error::MissingShard {
                dir: dir.to_path_buf(),
                shard: name(first),
                missing: expected.saturating_sub(shards.len()).max(1),
                shards: expected,
            });
        }
    }
    Ok(())
}

fn refuse_quantized(dir: &Path, config: &Map<String, Value>) -> Result<(), Error> {
    let text_config = config.get("text_config").and_then(Value::as_object);
    let in_config = [Some(config), text_config]
        .into_iter()
        .flatten()
        .find_map(|map| map.get("quantization_config").filter(|v| !v.is_null()));
    if let Some(quantization) = in_config {
        let method = ["quant_method", "quant_algo"]
            .iter()
            .find_map(|key| quantization.get(key)?.as_str())
            .unwrap_or("an unnamed method");
        return Err(Error::Quantized {
            dir: dir.to_path_buf(),
            method: method.to_string(),
            file: "config.json",
        });
    }
    for file in ["hf_quant_config.json", "quantize_config.json"] {
        if dir.join(file).is_file() {
            return Err(Error::Quantized {
                dir: dir.to_path_buf(),
                method: "declared by its own file".into(),
                file,
            });
        }
    }
    Ok(())
}

/// The crate's error in words a user can act on.
fn explain(error: &safetensors::SafeTensorError, len: usize) -> String {
    use safetensors::SafeTensorError as E;
    match error {
        E::HeaderTooSmall => format!("it has {len} bytes, too few for a header"),
        E::HeaderTooLarge => "its header claims more than 100 MB".into(),
        E::InvalidHeaderLength => {
            format!("its header claims to reach past the end of the file at byte {len}")
        }
        E::MetadataIncompleteBuffer => {
            format!(
                "its tensors do not end where the file ends, at byte {len}; it is truncated or has bytes too many"
            )
        }
        E::InvalidHeader(_) | E::InvalidHeaderDeserialization(_) | E::JsonError(_) => {
            format!("its header can't be read ({error})")
        }
        E::InvalidOffset(name) => {
            format!("the data of tensor `{name}` overlaps another tensor or leaves a hole")
        }
        E::TensorInvalidInfo | E::ValidationOverflow | E::MisalignedSlice => {
            format!("the shape and the size of a tensor disagree ({error})")
        }
        other => other.to_string(),
    }
}
