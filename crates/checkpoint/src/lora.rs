//! A LoRA adapter as PEFT writes it: `adapter_config.json`, and products of two thin matrices, `adapter_model.safetensors`,
//! each of which is added to a weight of a checkpoint.
//!
//! Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dwindle_mapped::Mapping;
use safetensors::Dtype;
use serde_json::{Map, Value};

use super::quantized::number;
use super::raw::Raw;
use super::reading::read_json;
use super::shards::Kind;
use super::{Error, SourceFile, contents};

const CONFIG: &str = "adapter_config.json";

/// What PEFT puts before the names of modules.
const PREFIX: &str = "base_model.model.";

/// An open adapter.
#[derive(Debug)]
pub struct Lora {
    dir: PathBuf,
    config: Map<String, Value>,
    shards: Vec<Mapping>,
    files: Vec<SourceFile>,
    /// By the names of the weights that they are added to.
    pairs: BTreeMap<String, Pair>,
}

/// The two matrices of a weight.
#[derive(Debug)]
struct Pair {
    inputs: Raw,
    outputs: Raw,
}

/// What is added to a weight: scale times outputs times inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// Rows of `inputs`, columns of `outputs`.
    pub rank: usize,
    /// Columns of `inputs`.
    pub width: usize,
    /// Rows of `outputs`.
    pub height: usize,
    /// Rows one after another.
    pub inputs: Vec<f32>,
    /// Rows one after another.
    pub outputs: Vec<f32>,
    /// What the product is multiplied by.
    pub scale: f32,
    /// Whether the weight lies transposed, inputs slowest, as in GPT-2.
    pub transposed: bool,
}

impl Lora {
    /// Opens an adapter's folder.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the adapter is of another kind, or changes more than products can.
    pub fn open(dir: &Path) -> Result<Lora, Error> {
        let Some(Value::Object(config)) = read_json(&dir.join(CONFIG))? else {
            return Err(Error::NoAdapter(dir.to_path_buf()));
        };
        let mut lora = Lora {
            dir: dir.to_path_buf(),
            config,
            shards: Vec::new(),
            files: Vec::new(),
            pairs: BTreeMap::new(),
        };
        let kind = lora.config.get("peft_type").and_then(Value::as_str);
        if kind != Some("LORA") {
            return Err(lora.refuse(format!("is of type {}", kind.unwrap_or("unknown"))));
        }
        if lora.switch("use_dora") {
            return Err(lora.refuse("scales directions (DoRA)".into()));
        }
        if !lora.alpha().is_normal() {
            return Err(lora.refuse(format!("has the scale {}", lora.alpha())));
        }
        if let Some((pattern, _)) = lora.patterns().find(|(key, _)| !is_name(key)) {
            return Err(lora.refuse(format!("has a scale for all names like `{pattern}`")));
        }
        let files = [
            ("adapter_model.safetensors", Kind::Safetensors),
            ("adapter_model.bin", Kind::Pickled),
        ];
        let found = files.iter().find(|(file, _)| dir.join(file).is_file());
        let (file, kind) = found.ok_or_else(|| Error::NoAdapter(dir.to_path_buf()))?;
        let path = dir.join(file);
        lora.files.push(SourceFile::of(&path)?);
        let map = Mapping::open(&path)?;
        let raws = contents::read(&path, *kind, &map, 0)?;
        lora.shards.push(map);
        lora.pair(raws)?;
        Ok(lora)
    }

    /// Its file.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }

    /// What PEFT calls the model that it was trained on.
    pub fn base(&self) -> Option<&str> {
        self.config.get("base_model_name_or_path")?.as_str()
    }

    /// The names of the weights that something is added to, in a checkpoint.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.pairs.keys().map(String::as_str)
    }

    /// The adapter's own scale. Divided by the rank, it is what products are multiplied by.
    pub fn alpha(&self) -> f32 {
        let alpha = self.config.get("lora_alpha").and_then(Value::as_f64);
        alpha.unwrap_or(8.0) as f32
    }

    /// What is added to a weight.
    pub fn update(&self, weight: &str) -> Option<Update> {
        let Pair { inputs, outputs } = self.pairs.get(weight)?;
        let floats = |raw: &Raw| {
            let bytes = raw.bytes(&self.shards);
            let all = 0..raw.elements();
            all.map(|i| number(bytes, raw.dtype, i)).collect()
        };
        let rank = inputs.shape[0];
        let divisor = match self.switch("use_rslora") {
            true => (rank as f32).sqrt(),
            false => rank as f32,
        };
        Some(Update {
            rank,
            width: inputs.shape[1],
            height: outputs.shape[0],
            inputs: floats(inputs),
            outputs: floats(outputs),
            scale: self.alpha_of(weight) / divisor,
            transposed: self.switch("fan_in_fan_out"),
        })
    }

    fn switch(&self, key: &str) -> bool {
        self.config.get(key).and_then(Value::as_bool) == Some(true)
    }

    /// Scales by the ends of modules' names.
    fn patterns(&self) -> impl Iterator<Item = (&String, &Value)> {
        let patterns = self.config.get("alpha_pattern").and_then(Value::as_object);
        patterns.into_iter().flatten()
    }

    /// The scale of a module, which a pattern of names may give.
    fn alpha_of(&self, weight: &str) -> f32 {
        let module = weight.strip_suffix(".weight").unwrap_or(weight);
        let named = |pattern: &str| {
            let rest = module.strip_suffix(pattern.trim_start_matches('^'));
            rest.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let own = self.patterns().find(|(key, _)| named(key));
        let own = own.and_then(|(_, alpha)| alpha.as_f64());
        own.map_or_else(|| self.alpha(), |alpha| alpha as f32)
    }

    fn refuse(&self, found: String) -> Error {
        Error::Adapter {
            dir: self.dir.clone(),
            found,
        }
    }

    /// Brings the two matrices of each weight together.
    fn pair(&mut self, raws: Vec<Raw>) -> Result<(), Error> {
        let mut halves: BTreeMap<String, [Option<Raw>; 2]> = BTreeMap::new();
        for raw in raws {
            let name = raw.name.strip_prefix(PREFIX).unwrap_or(&raw.name);
            let parts = [".lora_A", ".lora_B"].map(|part| name.split_once(part));
            let (module, half) = match parts {
                [Some((module, _)), _] => (module, 0),
                [_, Some((module, _))] => (module, 1),
                _ => {
                    return Err(self.refuse(format!(
                        "changes more than products of thin matrices can say: it holds `{}`",
                        raw.name
                    )));
                }
            };
            if !matches!(raw.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) || raw.shape.len() != 2 {
                return Err(self.refuse(format!(
                    "holds `{}`, {:?} of shape {:?}, where a matrix of floats is expected",
                    raw.name, raw.dtype, raw.shape
                )));
            }
            let weight = format!("{module}.weight");
            halves.entry(weight).or_default()[half] = Some(raw);
        }
        for (weight, [inputs, outputs]) in halves {
            let (Some(inputs), Some(outputs)) = (inputs, outputs) else {
                return Err(self.refuse(format!("has one of two matrices of `{weight}`")));
            };
            if inputs.shape[0] != outputs.shape[1] || inputs.elements() * outputs.elements() == 0 {
                return Err(self.refuse(format!(
                    "has matrices of `{weight}` of shapes {:?} and {:?}, which can't be multiplied",
                    outputs.shape, inputs.shape
                )));
            }
            self.pairs.insert(weight, Pair { inputs, outputs });
        }
        if self.pairs.is_empty() {
            return Err(self.refuse("changes nothing".into()));
        }
        Ok(())
    }
}

/// Whether a pattern is the end of a name, or a whole one behind `^`.
fn is_name(pattern: &str) -> bool {
    let name = pattern.strip_prefix('^').unwrap_or(pattern);
    name.chars()
        .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}
