//! The model's parameters as GGUF metadata.

use dwindle_formats::gguf::Metadata;
use serde_json::Value;

use super::Error;
use super::config::{Config, bad};
use super::families::{Family, Parameter};
use super::rope::Rope;
use super::weights::Dims;
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

/// Writes every parameter, in the order of llama.cpp's converter.
pub(super) fn describe(
    family: &Family,
    config: &Config,
    dims: &Dims,
    rope: &Rope,
    folder: &HuggingFace,
    metadata: &mut Metadata,
) -> Result<(), Error> {
    let architecture = family.architecture;
    let key = |name: &str| format!("{architecture}.{name}");
    let count = |metadata: &mut Metadata, keys: &[&str], name: &str| -> Result<(), Error> {
        if let Some(count) = config.count(keys)? {
            metadata.set(key(name), count);
        }
        Ok(())
    };
    metadata.set(key("block_count"), dims.layers as u32);
    for (keys, name) in COUNTS {
        count(metadata, keys, name)?;
    }
    if config.get("is_causal") == Some(&Value::Bool(false)) {
        metadata.set(key("attention.causal"), false);
    }
    rope.describe(architecture, metadata)?;
    if let Some(epsilon) = config.number(&["rms_norm_eps", "norm_eps"])? {
        metadata.set(key("attention.layer_norm_rms_epsilon"), epsilon as f32);
    }
    let epsilons = ["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"];
    if let Some(epsilon) = config.number(&epsilons)? {
        metadata.set(key("attention.layer_norm_epsilon"), epsilon as f32);
    }
    for (keys, name) in EXPERT_COUNTS {
        count(metadata, keys, name)?;
    }
    if let Some((from, function)) = config.first(&GATING) {
        let known = GATING_FUNCTIONS.iter().find(|(name, _)| function == name);
        let (_, id) =
            known.ok_or_else(|| bad(from, function, "softmax, sigmoid or sqrtsoftplus"))?;
        metadata.set(key("expert_gating_func"), *id);
    }
    if let Some(dim) = config.count(&["head_dim"])? {
        metadata.set(key("attention.key_length"), dim);
        metadata.set(key("attention.value_length"), dim);
    }
    for parameter in family.parameters {
        match *parameter {
            Parameter::Count(from, to) => count(metadata, &[from], to)?,
            Parameter::Number(from, to) => {
                if let Some(value) = config.number(&[from])?.filter(|v| *v != 0.0) {
                    metadata.set(key(to), value as f32);
                }
            }
            Parameter::RotaryDimensions => {
                metadata.set(key("rope.dimension_count"), dims.head as u32);
            }
            Parameter::PartialRotary => {
                metadata.set(key("rope.dimension_count"), rope.dimensions(dims.head));
            }
            Parameter::Switch(from, to) => {
                if let Some(value) = config.get(from).and_then(Value::as_bool) {
                    metadata.set(key(to), value);
                }
            }
            Parameter::Windows => windows(config, dims, architecture, metadata)?,
            Parameter::WindowsAt(layers) => {
                let window = config.get("sliding_window");
                if let Some(found) = window.filter(|_| dims.layers != layers) {
                    let expected = format!(
                        "null, since llama.cpp knows windows of models with {layers} layers only"
                    );
                    return Err(bad("sliding_window", found, &expected));
                }
                windows(config, dims, architecture, metadata)?;
            }
            Parameter::WindowsBut(each) => {
                every(config, each)?;
                count(metadata, &["sliding_window"], "attention.sliding_window")?;
            }
            Parameter::NeoWindows => neo_windows(config, dims, architecture, metadata)?,
            Parameter::Window => {
                let window = config.count(&["sliding_window"])?.unwrap_or(0);
                metadata.set(key("attention.sliding_window"), window);
            }
            Parameter::Rotary(from, to) => {
                if let Some(value) = rope.number(from)? {
                    metadata.set(key(to), value as f32);
                }
            }
            Parameter::Deepstack => {
                let layers = deepstack(folder);
                metadata.set(key("n_deepstack_layers"), layers);
            }
            Parameter::Sections => {
                if let Some(sections) = rope.sections()? {
                    metadata.set(key("rope.dimension_sections"), sections);
                }
            }
            Parameter::VocabularySize => {
                metadata.set(key("vocab_size"), dims.vocabulary as u32);
            }
            Parameter::NoRopeScaling => metadata.set(key("rope.scaling.type"), "none"),
            Parameter::Pooling => {
                if let Some(pooling) = pooling(folder)? {
                    metadata.set(key("pooling_type"), pooling);
                }
            }
        }
    }
    Ok(())
}

/// The window, and which layers have it. A model whose layers all see everything has none.
fn windows(
    config: &Config,
    dims: &Dims,
    architecture: &str,
    metadata: &mut Metadata,
) -> Result<(), Error> {
    let Some(window) = config.count(&["sliding_window"])? else {
        return Ok(());
    };
    let key = |name: &str| format!("{architecture}.attention.{name}");
    metadata.set(key("sliding_window"), window);
    if let Some(Value::Array(kinds)) = config.get("layer_types") {
        let in_window = |kind: &Value| kind == "sliding_attention";
        let pattern: Vec<bool> = kinds.iter().map(in_window).collect();
        if pattern.len() as u64 != dims.layers {
            let expected = format!("one kind for each of {} layers", dims.layers);
            return Err(bad("layer_types", &kinds.clone().into(), &expected));
        }
        metadata.set(key("sliding_window_pattern"), pattern);
    }
    Ok(())
}

/// GPT-Neo's window, and which layers have it: `attention_types` repeats lists of kinds.
fn neo_windows(
    config: &Config,
    dims: &Dims,
    architecture: &str,
    metadata: &mut Metadata,
) -> Result<(), Error> {
    let types = config.get("attention_types").and_then(Value::as_array);
    let mut pattern = Vec::new();
    for group in types.into_iter().flatten() {
        let kinds = group.get(0).and_then(Value::as_array);
        let times = group.get(1).and_then(Value::as_u64).unwrap_or(0);
        for _ in 0..times.min(dims.layers) {
            if pattern.len() as u64 > dims.layers {
                break;
            }
            let kinds = kinds.into_iter().flatten();
            pattern.extend(kinds.map(|kind| kind == "local"));
        }
    }
    if pattern.len() as u64 != dims.layers {
        let found = config.get("attention_types").cloned().unwrap_or_default();
        let expected = format!("one kind for each of {} layers", dims.layers);
        return Err(bad("attention_types", &found, &expected));
    }
    let key = |name: &str| format!("{architecture}.attention.{name}");
    metadata.set(key("sliding_window"), config.need(&["window_size"])?);
    metadata.set(key("sliding_window_pattern"), pattern);
    Ok(())
}

/// Layers that see images besides the first.
fn deepstack(folder: &HuggingFace) -> u32 {
    let vision = folder.config().get("vision_config");
    let layers = vision.and_then(|v| v.get("deepstack_visual_indexes")?.as_array());
    layers.map_or(0, |layers| layers.len() as u32)
}

/// Holds the layers that have a window against what llama.cpp knows: all but each one of so many.
fn every(config: &Config, each: u64) -> Result<(), Error> {
    let Some(found @ Value::Array(kinds)) = config.get("layer_types") else {
        return Ok(());
    };
    let expected = |layer: u64| (layer + 1) % each != 0;
    let found_in = |kind: &Value| kind == "sliding_attention";
    if kinds
        .iter()
        .zip(0..)
        .all(|(kind, layer)| found_in(kind) == expected(layer))
    {
        return Ok(());
    }
    let expected =
        format!("`sliding_attention` for all layers but each {each}th, as llama.cpp has it");
    Err(bad("layer_types", found, &expected))
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
