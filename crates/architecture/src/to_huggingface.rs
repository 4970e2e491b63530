//! Turns a model back into a Hugging Face checkpoint, by the same templates as `weights`, with the
//! configuration and the tokenizer of the checkpoint that it came from.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

use dwindle_checkpoint::Source;
use dwindle_checkpoint::huggingface::HuggingFace;
use dwindle_formats::bounded;
use dwindle_formats::gguf::TensorType;
use dwindle_formats::output::{Scratch, folder_of};
use dwindle_ggml as ggml;
use dwindle_ggml::GgmlError;
use fs_err as fs;
use safetensors::tensor::{Dtype, View};
use serde_json::{Map, Value};

use super::families::{Family, Form, Heads, sees};
use super::huggingface::{class, family};
use super::source_names::{ending, fill, is_expert};
use super::{Error, Model, ModelTensor};

/// What `transformers` loads.
pub struct Checkpoint<'a> {
    config: Map<String, Value>,
    tensors: Vec<(String, CheckpointTensor<'a>)>,
}

/// A tensor of a checkpoint, made when it is asked for. What is quantized becomes F16.
struct CheckpointTensor<'a> {
    tensor: &'a ModelTensor,
    source: &'a dyn Source,
    /// The expert of a stack.
    slice: u64,
    /// Slowest dimension first.
    shape: Vec<usize>,
    /// Heads whose rows go from pairs back to halves.
    heads: Option<u64>,
    /// Why the bytes that were asked for are not right.
    problem: OnceLock<GgmlError>,
}

/// Sees a model as a checkpoint of the family of `origin`.
///
/// # Errors
/// Another family, blocks that differ in width, heads of another length, a tensor that the family
/// has no place for or that can't be read.
pub fn to_huggingface<'a>(
    origin: &HuggingFace,
    model: &'a Model,
    source: &'a dyn Source,
) -> Result<Checkpoint<'a>, Error> {
    let family = family(origin)?;
    if model.architecture != family.architecture {
        let found = format!("export as a `{}`", family.names[0]);
        let supported = format!("a `{}`, whose blocks are all alike", family.architecture);
        return Err(refuse(model, found, supported));
    }
    if family.encodes {
        let found = "export of an encoder".into();
        return Err(refuse(model, found, "a model that predicts tokens".into()));
    }
    if class(origin).is_some_and(sees) {
        let found = "export of the language model of one that sees".into();
        return Err(refuse(
            model,
            found,
            "a model that is one of language alone".into(),
        ));
    }
    if !family.lies_as_in_llama_cpp() {
        let found = format!("export as a `{}`", family.names[0]);
        return Err(refuse(model, found, EXPORTED.into()));
    }
    let sizes = Sizes::of(origin, model)?;
    let tensors = place(family, &sizes, model, source)?;
    let config = config(origin, &sizes, model, &tensors)?;
    Ok(Checkpoint { config, tensors })
}

/// What all blocks have alike.
struct Sizes {
    layers: u64,
    heads: u64,
    kv_heads: u64,
    key_length: u64,
}

impl Sizes {
    fn of(origin: &HuggingFace, model: &Model) -> Result<Sizes, Error> {
        let layers = need(model, "block_count")?;
        let heads = need(model, "attention.head_count")?;
        let kv_heads = number(model, "attention.head_count_kv").unwrap_or(heads);
        let embedding = need(model, "embedding_length")?;
        let key_length = number(model, "attention.key_length").unwrap_or(embedding / heads.max(1));
        let value_length = number(model, "attention.value_length").unwrap_or(key_length);
        let own = |key: &str| origin.config().get(key).and_then(Value::as_u64);
        let own_length = own("head_dim")
            .or_else(|| own("hidden_size")?.checked_div(own("num_attention_heads")?))
            .unwrap_or(key_length);
        if [key_length, value_length] != [own_length; 2] {
            let found =
                format!("heads with keys of {key_length} and values of {value_length} elements");
            return Err(refuse(
                model,
                found,
                format!("{own_length} of each, as in the checkpoint"),
            ));
        }
        Ok(Sizes {
            layers,
            heads,
            kv_heads,
            key_length,
        })
    }
}

fn refuse(model: &Model, found: String, supported: String) -> Error {
    Error::Feature {
        architecture: model.architecture.clone(),
        found,
        supported,
    }
}

/// A number of the model's metadata.
fn number(model: &Model, suffix: &str) -> Option<u64> {
    let value = model
        .metadata
        .get(&format!("{}.{suffix}", model.architecture));
    value.and_then(|v| v.as_u64())
}

fn need(model: &Model, suffix: &str) -> Result<u64, Error> {
    let found = format!("no single `{suffix}`");
    number(model, suffix).ok_or_else(|| refuse(model, found, "one for all blocks".into()))
}

/// Tensors that follow from the configuration.
const COMPUTED: [&str; 3] = [
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
];

/// Families whose checkpoints can be written.
const EXPORTED: &str = "a family whose weights llama.cpp has as the checkpoint has them";

/// The family's tensors of the model.
fn place<'a>(
    family: &Family,
    sizes: &Sizes,
    model: &'a Model,
    source: &'a dyn Source,
) -> Result<Vec<(String, CheckpointTensor<'a>)>, Error> {
    let by_name: HashMap<&str, &ModelTensor> =
        model.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut tensors = Vec::new();
    let mut placed = 0;
    for weight in family.weights.iter().copied().flatten() {
        let layers = if weight.target.contains("{}") {
            sizes.layers
        } else {
            1
        };
        for layer in 0..layers {
            let endings: &[bool] = if weight.named {
                &[false]
            } else {
                &[false, true]
            };
            for bias in endings.iter().copied() {
                let fill = |template: &str| fill(template, Some(layer)) + ending(weight, bias);
                let Some(tensor) = by_name.get(fill(weight.target).as_str()) else {
                    continue;
                };
                let ty = tensor.source_type(source);
                if !ggml::readable(ty) {
                    return Err(refuse(
                        model,
                        format!("type {ty}"),
                        "a type of weights".into(),
                    ));
                }
                let of_heads = heads_of(weight.form, sizes).ok_or_else(|| {
                    let found = format!("export as a `{}`", family.names[0]);
                    refuse(model, found, EXPORTED.into())
                })?;
                let made = |slice| CheckpointTensor::new(tensor, source, slice, of_heads);
                placed += 1;
                if is_expert(weight) {
                    for expert in 0..tensor.slices() as u64 {
                        let name = fill(weight.source).replace("{e}", &expert.to_string());
                        tensors.push((name, made(expert)));
                    }
                } else {
                    tensors.push((fill(weight.source), made(0)));
                }
            }
        }
    }
    let computed = COMPUTED
        .iter()
        .filter(|name| by_name.contains_key(**name))
        .count();
    if placed + computed != model.tensors.len() {
        let found = format!("{} tensors", model.tensors.len());
        return Err(refuse(
            model,
            found,
            format!("the {placed} that the family has"),
        ));
    }
    Ok(tensors)
}

/// The heads whose rows go back from pairs to halves, if any; nothing where a weight has another form.
fn heads_of(form: Form, sizes: &Sizes) -> Option<Option<u64>> {
    match form {
        Form::Whole => Some(None),
        Form::Pairs(Heads::Query) => Some(Some(sizes.heads)),
        Form::Pairs(Heads::KeyValue) => Some(Some(sizes.kv_heads)),
        _ => None,
    }
}

/// The `config.json` of the model.
fn config(
    origin: &HuggingFace,
    sizes: &Sizes,
    model: &Model,
    tensors: &[(String, CheckpointTensor<'_>)],
) -> Result<Map<String, Value>, Error> {
    let mut config = origin.config().clone();
    let mut set = |key: &str, value: u64| {
        config.insert(key.to_string(), value.into());
    };
    set("num_hidden_layers", sizes.layers);
    set("num_attention_heads", sizes.heads);
    set("num_key_value_heads", sizes.kv_heads);
    let implied = need(model, "embedding_length")? / sizes.heads.max(1);
    let said = origin
        .config()
        .get("head_dim")
        .is_some_and(|dim| !dim.is_null());
    if said || sizes.key_length != implied {
        set("head_dim", sizes.key_length);
    }
    match number(model, "expert_feed_forward_length") {
        Some(width) => set("moe_intermediate_size", width),
        None => set("intermediate_size", need(model, "feed_forward_length")?),
    }
    for (key, suffix) in [
        ("num_local_experts", "expert_count"),
        ("num_experts", "expert_count"),
        ("num_experts_per_tok", "expert_used_count"),
    ] {
        if let (Some(value), Some(count)) = (config.get_mut(key), number(model, suffix)) {
            *value = count.into();
        }
    }
    if let Some(Value::Array(kinds)) = config.get_mut("layer_types") {
        kinds.truncate(sizes.layers as usize);
    }
    let name = dtype(tensors);
    for key in ["torch_dtype", "dtype"] {
        if config.contains_key(key) || key == "torch_dtype" {
            config.insert(key.to_string(), name.into());
        }
    }
    Ok(config)
}

/// The type of the largest tensor, by the name that `config.json` has for it.
fn dtype(tensors: &[(String, CheckpointTensor<'_>)]) -> &'static str {
    let largest = tensors.iter().max_by_key(|(_, t)| t.data_len());
    match largest.map(|(_, t)| t.dtype()) {
        Some(Dtype::F32) => "float32",
        Some(Dtype::BF16) => "bfloat16",
        _ => "float16",
    }
}

impl Checkpoint<'_> {
    /// Writes the folder, tokenizer and all, beside its place and moves it there.
    ///
    /// # Errors
    /// When the folder is there already, or the system's reasons.
    pub fn write(self, origin: &HuggingFace, destination: &Path) -> std::io::Result<()> {
        if fs::symlink_metadata(destination).is_ok() {
            let message = format!("`{}` is there already", destination.display());
            return Err(std::io::Error::new(
                std::io::ErrorKind::AlreadyExists,
                message,
            ));
        }
        let scratch = Scratch::new_in(folder_of(destination))?;
        let folder = scratch.path().join("folder");
        fs::create_dir(&folder)?;
        for entry in fs::read_dir(origin.dir())? {
            let path = entry?.path();
            let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
            let name = path.file_name().unwrap_or_default();
            let is_weights = name.to_string_lossy().ends_with(".index.json");
            if ["json", "txt", "model", "jinja", "md"].contains(&extension) && !is_weights {
                let bytes = bounded::read(&path, bounded::limits::VOCABULARY)?;
                fs::write(folder.join(name), bytes)?;
            }
        }
        let config = serde_json::to_vec_pretty(&self.config)?;
        fs::write(folder.join("config.json"), config)?;
        let weights = folder.join("model.safetensors");
        let format = HashMap::from([("format".to_string(), "pt".to_string())]);
        let views = self.tensors.iter().map(|(name, tensor)| (name, tensor));
        safetensors::serialize_to_file(views, Some(format), &weights)
            .map_err(std::io::Error::other)?;
        for (name, tensor) in &self.tensors {
            if let Some(problem) = tensor.problem.get() {
                let text = format!("tensor `{name}` in F16: {problem}");
                return Err(std::io::Error::other(text));
            }
        }
        for entry in fs::read_dir(&folder)? {
            fs::File::open(entry?.path())?.sync_all()?;
        }
        fs::rename(&folder, destination)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, t)| t.data_len() as u64).sum()
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

impl<'a> CheckpointTensor<'a> {
    fn new(
        tensor: &'a ModelTensor,
        source: &'a dyn Source,
        slice: u64,
        heads: Option<u64>,
    ) -> CheckpointTensor<'a> {
        let dims = tensor.shape.iter().take(2).rev();
        CheckpointTensor {
            tensor,
            source,
            slice,
            shape: dims.map(|n| *n as usize).collect(),
            heads,
            problem: OnceLock::new(),
        }
    }

    fn rows(&self) -> Cow<'_, [u8]> {
        let rows = self.tensor.rows_per_slice();
        let first = self.slice * rows;
        let bytes = self.tensor.rows(self.source, first..first + rows);
        let ty = self.tensor.source_type(self.source);
        if !ty.is_quantized() {
            return bytes;
        }
        let mut values = vec![0f32; self.shape.iter().product()];
        let mut halves = vec![0; 2 * values.len()];
        let made = ggml::dequantize(ty, &bytes, &mut values).and_then(|()| {
            ggml::quantize(TensorType::F16, &values, values.len(), None, &mut halves)
        });
        if let Err(problem) = made {
            // The trait that asks for bytes has no place for an error; `write` looks for it.
            let _ = self.problem.set(problem);
        }
        Cow::Owned(halves)
    }
}

impl View for &CheckpointTensor<'_> {
    fn dtype(&self) -> Dtype {
        match self.tensor.source_type(self.source) {
            TensorType::F32 => Dtype::F32,
            TensorType::BF16 => Dtype::BF16,
            _ => Dtype::F16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.rows();
        let Some(heads) = self.heads else {
            return bytes;
        };
        let unit = bytes.len() / self.shape[0].max(1);
        let head = self.shape[0] as u64 / heads.max(1);
        let mut out = vec![0; bytes.len()];
        for (row, from) in (0u64..).zip(bytes.chunks_exact(unit.max(1))) {
            let to = super::assembly::unpermuted(row, head) as usize * unit;
            out[to..to + unit].copy_from_slice(from);
        }
        Cow::Owned(out)
    }

    fn data_len(&self) -> usize {
        let elements: usize = self.shape.iter().product();
        elements * self.dtype().bitsize() / 8
    }
}
