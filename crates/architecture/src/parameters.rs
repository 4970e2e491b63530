//! The model's parameters as GGUF metadata.

use dwindle_formats::gguf::Metadata;
use serde_json::Value;

use super::Error;
use super::config::{Config, bad};
use super::dims::Dims;
use super::families::{Family, Parameter};
use super::kinds::Kind;
use super::rope::Rope;
use super::windows;
use dwindle_checkpoint::huggingface::HuggingFace;

/// Keys of the configuration and the count each becomes. Where several are named, the first that
/// is there counts.
const COUNTS: &[(&[&str], &str)] = &[
    (
        &[
            "max_position_embeddings",
            "n_ctx",
            "n_positions",
            "max_length",
            "max_sequence_length",
            "model_max_length",
        ],
        "context_length",
    ),
    (&["hidden_size"], "embedding_length"),
    (&["intermediate_size"], "feed_forward_length"),
    (&["num_attention_heads"], "attention.head_count"),
    (&["num_key_value_heads"], "attention.head_count_kv"),
];

const EXPERT_COUNTS: &[(&[&str], &str)] = &[
    (
        &["num_local_experts", "num_experts", "n_routed_experts"],
        "expert_count",
    ),
    (
        &[
            "num_experts_per_tok",
            "num_experts_per_token",
            "top_k_experts",
        ],
        "expert_used_count",
    ),
    (&["n_group"], "expert_group_count"),
    (&["topk_group"], "expert_group_used_count"),
];

/// Keys of the function that weighs experts; the first that is there counts.
const GATING: [&str; 6] = [
    "score_function",
    "scoring_func",
    "score_func",
    "moe_router_activation",
    "moe_router_activation_func",
    "expert_selection_fn",
];

/// llama.cpp's numbers of functions that weigh experts.
const GATING_FUNCTIONS: [(&str, u32); 3] = [("softmax", 1), ("sigmoid", 2), ("sqrtsoftplus", 4)];

/// What parameters are read from.
pub(super) struct Read<'a> {
    pub(super) family: &'a Family,
    pub(super) config: &'a Config,
    pub(super) dims: &'a Dims,
    pub(super) rope: &'a Rope,
    pub(super) folder: &'a HuggingFace,
}

/// Writes every parameter, in the order of llama.cpp's converter.
pub(super) fn describe(read: &Read<'_>, metadata: &mut Metadata) -> Result<(), Error> {
    read.common(metadata)?;
    let all = read.family.parameters.iter();
    all.copied().try_for_each(|p| read.own(p, metadata))
}

impl Read<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.architecture)
    }

    fn count(&self, metadata: &mut Metadata, keys: &[&str], name: &str) -> Result<(), Error> {
        if let Some(count) = self.config.count(keys)? {
            metadata.set(self.key(name), count);
        }
        Ok(())
    }

    /// What every family has.
    fn common(&self, metadata: &mut Metadata) -> Result<(), Error> {
        let config = self.config;
        metadata.set(self.key("block_count"), self.dims.layers as u32);
        for (keys, name) in COUNTS {
            self.count(metadata, keys, name)?;
        }
        if config.get("is_causal") == Some(&Value::Bool(false)) {
            metadata.set(self.key("attention.causal"), false);
        }
        self.rope.describe(self.family.architecture, metadata)?;
        if let Some(epsilon) = config.number(&["rms_norm_eps", "norm_eps"])? {
            metadata.set(self.key("attention.layer_norm_rms_epsilon"), epsilon as f32);
        }
        let epsilons = ["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"];
        if let Some(epsilon) = config.number(&epsilons)? {
            metadata.set(self.key("attention.layer_norm_epsilon"), epsilon as f32);
        }
        for (keys, name) in EXPERT_COUNTS {
            self.count(metadata, keys, name)?;
        }
        if let Some((from, function)) = config.first(&GATING) {
            let known = GATING_FUNCTIONS.iter().find(|(name, _)| function == name);
            let expected = "softmax, sigmoid or sqrtsoftplus";
            let (_, id) = known.ok_or_else(|| bad(from, function, expected))?;
            metadata.set(self.key("expert_gating_func"), *id);
        }
        if let Some(dim) = config.count(&["head_dim"])? {
            metadata.set(self.key("attention.key_length"), dim);
            metadata.set(self.key("attention.value_length"), dim);
        }
        Ok(())
    }

    /// One of the family's own.
    fn own(&self, parameter: Parameter, metadata: &mut Metadata) -> Result<(), Error> {
        let (config, dims, rope) = (self.config, self.dims, self.rope);
        match parameter {
            Parameter::Count(from, to) => self.count(metadata, &[from], to)?,
            Parameter::Number(from, to) => {
                if let Some(value) = config.number(&[from])?.filter(|v| *v != 0.0) {
                    metadata.set(self.key(to), value as f32);
                }
            }
            Parameter::Switch(from, to) => {
                if let Some(value) = config.get(from).and_then(Value::as_bool) {
                    metadata.set(self.key(to), value);
                }
            }
            Parameter::RotaryDimensions | Parameter::PartialRotary => {
                let turned = match parameter {
                    Parameter::PartialRotary => rope.dimensions(dims.head),
                    _ => dims.head as u32,
                };
                metadata.set(self.key("rope.dimension_count"), turned);
            }
            Parameter::Rotary(from, to) => {
                if let Some(value) = rope.number(from)? {
                    metadata.set(self.key(to), value as f32);
                }
            }
            Parameter::Sections => {
                if let Some(sections) = rope.sections()? {
                    metadata.set(self.key("rope.dimension_sections"), sections);
                }
            }
            Parameter::LatentAttention
            | Parameter::StateSpaces
            | Parameter::HeadsWhereAttending
            | Parameter::WidthsWhereFeeding
            | Parameter::LinearAttention => self.attention(parameter, metadata)?,
            Parameter::NoRopeScaling => metadata.set(self.key("rope.scaling.type"), "none"),
            Parameter::Window(windows) => {
                windows::describe(windows, config, dims, self.family.architecture, metadata)?;
            }
            Parameter::Deepstack => {
                metadata.set(self.key("n_deepstack_layers"), deepstack(self.folder));
            }
            Parameter::VocabularySize => {
                metadata.set(self.key("vocab_size"), dims.vocabulary as u32);
            }
            Parameter::TokenTypes => {
                let kinds = dims.token_types.max(1) as u32;
                metadata.set("tokenizer.ggml.token_type_count", kinds);
            }
            Parameter::PositionsBehindPadding => {
                let length = dims.positions.saturating_sub(dims.padding) as u32;
                metadata.set(self.key("context_length"), length);
            }
            Parameter::Pooling => {
                if let Some(pooling) = pooling(self.folder)? {
                    metadata.set(self.key("pooling_type"), pooling);
                }
            }
        }
        Ok(())
    }
}

impl Read<'_> {
    /// Attention of another kind than all heads to everything.
    fn attention(&self, parameter: Parameter, metadata: &mut Metadata) -> Result<(), Error> {
        let (dims, architecture) = (self.dims, self.family.architecture);
        match (parameter, &dims.linear, &dims.latent) {
            (Parameter::HeadsWhereAttending, _, _) => {
                let heads = |kind: &Kind| match kind {
                    Kind::Attending => dims.kv_heads as i32,
                    _ => 0,
                };
                let heads: Vec<i32> = dims.kinds.iter().map(heads).collect();
                if heads.len() as u64 == dims.layers {
                    metadata.set(self.key("attention.head_count_kv"), heads);
                }
            }
            (Parameter::WidthsWhereFeeding, _, _) => {
                let width = |kind: &Kind| match kind {
                    Kind::Feeding => dims.feed_forward as i32,
                    Kind::Routed => dims.expert_feed_forward as i32,
                    _ => 0,
                };
                let widths: Vec<i32> = dims.kinds.iter().map(width).collect();
                if widths.len() as u64 == dims.layers {
                    metadata.set(self.key("feed_forward_length"), widths);
                }
            }
            (Parameter::LinearAttention, Some(linear), _) => {
                linear.describe(architecture, self.config, metadata)?;
            }
            (Parameter::StateSpaces, _, _) => {
                if let Some(space) = &dims.state_space {
                    let some = dims.kinds.contains(&Kind::Keyless);
                    space.describe(architecture, some, metadata);
                }
            }
            (Parameter::LatentAttention, _, Some(latent)) => {
                latent.describe(architecture, metadata);
                // llama.cpp divides by what its converter multiplies by here.
                if let Some(value) = self.rope.number("mscale_all_dim")? {
                    let key = self.key("rope.scaling.yarn_log_multiplier");
                    metadata.set(key, (0.1 * value) as f32);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Layers that see images besides the first.
fn deepstack(folder: &HuggingFace) -> u32 {
    let vision = folder.config().get("vision_config");
    let layers = vision.and_then(|v| v.get("deepstack_visual_indexes")?.as_array());
    layers.map_or(0, |layers| layers.len() as u32)
}

/// llama.cpp's pooling types, and the keys and names of sentence-transformers.
const POOLING: [(&str, &str, u32); 3] = [
    ("pooling_mode_mean_tokens", "mean", 1),
    ("pooling_mode_cls_token", "cls", 2),
    ("pooling_mode_lasttoken", "lasttoken", 3),
];

fn pooling(folder: &HuggingFace) -> Result<Option<u32>, Error> {
    let Some(modules) = folder.json("modules.json")? else {
        return Ok(None);
    };
    let path = modules.as_array().into_iter().flatten().find_map(|module| {
        let kind = module.get("type")?.as_str()?;
        kind.ends_with("Pooling")
            .then(|| module.get("path")?.as_str())?
    });
    // A path out of the folder must not be read.
    let Some(path) = path.filter(|p| !p.contains("..") && !p.starts_with('/')) else {
        return Ok(None);
    };
    let Some(pooling) = folder.json(&format!("{path}/config.json"))? else {
        return Ok(None);
    };
    let set = |key: &str| pooling.get(key).and_then(Value::as_bool) == Some(true);
    let named = pooling.get("pooling_mode").and_then(Value::as_str);
    let found = POOLING.iter().find(|(key, _, _)| set(key));
    match found.or_else(|| POOLING.iter().find(|(_, name, _)| named == Some(name))) {
        Some((_, _, pooling)) => Ok(Some(*pooling)),
        None => Err(Error::Config {
            file: "modules.json",
            key: "pooling".into(),
            found: "another mode".into(),
            expected: "mean, cls or lasttoken".into(),
        }),
    }
}
