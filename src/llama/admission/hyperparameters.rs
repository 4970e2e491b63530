//! Hyperparameters: what `llama_model_base::load_hparams`, the architectures' own loading and the
//! kernels assert of them.

use dwindle_formats::gguf::{Metadata, Value};

use super::{Keys, Refusal};

/// llama.cpp's `LLAMA_MAX_LAYERS`.
const MAX_LAYERS: u64 = 512;
/// llama.cpp's `LLAMA_MAX_EXPERTS`.
const MAX_EXPERTS: u64 = 1024;

/// Keys that some architectures divide by, without a look. An architecture that is named first with
/// `!` takes zero as "none".
const DIVISORS: &[(&str, &[&str])] = &[
    ("interleave_moe_layer_step", &["!llama4"]),
    ("full_attention_interval", &[]),
    (
        "ssm.group_count",
        &[
            "mamba2",
            "granitehybrid",
            "nemotron_h",
            "nemotron_h_moe",
            "falcon-h1",
        ],
    ),
    ("ssm.time_step_rank", &[]),
    ("experts_per_group", &[]),
    ("wkv.head_size", &[]),
    ("attention.output_group_count", &[]),
    (
        "attention.head_count",
        &["olmo2", "phimoe", "gemma2", "gemma3", "deepseek2"],
    ),
];

/// Sizes of what is allocated without being checked against a tensor's shape.
const STATES: &[(&str, u64)] = &[("token_shift_count", 64), ("shortconv.l_cache", 1 << 16)];

pub(super) fn check(metadata: &Metadata) -> Result<(), Refusal> {
    let Some(keys) = Keys::of(metadata) else {
        return Ok(());
    };
    layers(&keys)?;
    experts(&keys)?;
    numbers(&keys)?;
    rope(&keys)?;
    divisors(&keys)?;
    for (key, limit) in STATES {
        if let Some(n) = keys.count(key).filter(|n| n > limit) {
            return keys.refuse(key, n, format!("{limit} at most"));
        }
    }
    Ok(())
}

fn layers(keys: &Keys<'_>) -> Result<(), Refusal> {
    let Some(layers) = keys.scalar("block_count") else {
        return Ok(());
    };
    if !(1..=MAX_LAYERS).contains(&layers) {
        return keys.refuse("block_count", layers, format!("1 to {MAX_LAYERS}"));
    }
    match keys.scalar("nextn_predict_layers") {
        Some(n) if n >= layers => {
            let expected = format!(
                "fewer than the {layers} layers of `{}`",
                keys.name("block_count")
            );
            keys.refuse("nextn_predict_layers", n, expected)
        }
        _ => Ok(()),
    }
}

fn experts(keys: &Keys<'_>) -> Result<(), Refusal> {
    let experts = keys.scalar("expert_count").unwrap_or(0);
    let used = keys.count("expert_used_count");
    let groups = keys.scalar("expert_group_count").unwrap_or(0);
    if matches!(keys.architecture, "hunyuan-dense" | "hunyuan_vl") && experts <= 1 {
        // Taken as no experts at all.
        return Ok(());
    }
    if experts > MAX_EXPERTS {
        return keys.refuse("expert_count", experts, format!("{MAX_EXPERTS} at most"));
    }
    let count = format!("`{}`, which is {experts}", keys.name("expert_count"));
    if experts == 0 {
        if let Some(used) = used.filter(|n| *n > 0) {
            return keys.refuse(
                "expert_used_count",
                used,
                format!("0 without experts in {count}"),
            );
        }
        if groups > 0 {
            return keys.refuse(
                "expert_group_count",
                groups,
                format!("0 without experts in {count}"),
            );
        }
        return Ok(());
    }
    match used {
        None => {
            return Err(Refusal::Missing {
                key: keys.name("expert_used_count"),
                expected: format!("1 to {experts}, as there are experts"),
            });
        }
        Some(used) if !(1..=experts).contains(&used) => {
            return keys.refuse("expert_used_count", used, format!("1 to {experts}"));
        }
        Some(_) => {}
    }
    if groups >= experts {
        return keys.refuse("expert_group_count", groups, format!("less than {count}"));
    }
    if groups > 1 {
        if !experts.is_multiple_of(groups) {
            return keys.refuse(
                "expert_group_count",
                groups,
                format!("a divisor of {count}"),
            );
        }
        let used = keys.scalar("expert_group_used_count").unwrap_or(0);
        if !(1..groups).contains(&used) {
            let expected = format!("1 to {}, less than the groups", groups - 1);
            return keys.refuse("expert_group_used_count", used, expected);
        }
    }
    Ok(())
}

/// Numbers of the architecture are finite, and what keeps norms from dividing by zero is not
/// negative: ggml asserts the latter for every row.
fn numbers(keys: &Keys<'_>) -> Result<(), Refusal> {
    let prefix = keys.name("");
    for (key, value) in keys.metadata.iter() {
        let Some(rest) = key.strip_prefix(&prefix) else {
            continue;
        };
        let number = match *value {
            Value::F32(v) => f64::from(v),
            Value::F64(v) => v,
            _ => continue,
        };
        if rest.ends_with("epsilon") && !(number >= 0.0 && number.is_finite()) {
            return keys.refuse(rest, number, "a number that is not negative");
        }
        if !number.is_finite() {
            return keys.refuse(rest, number, "a finite number");
        }
    }
    Ok(())
}

fn rope(keys: &Keys<'_>) -> Result<(), Refusal> {
    const KINDS: [&str; 4] = ["none", "linear", "yarn", "longrope"];
    let kind = keys.metadata.get(&keys.name("rope.scaling.type"));
    if let Some(kind) = kind.and_then(Value::as_str)
        && !KINDS.contains(&kind)
    {
        let expected = "`none`, `linear`, `yarn` or `longrope`";
        return keys.refuse("rope.scaling.type", format!("`{kind}`"), expected);
    }
    let heads = keys.scalar("attention.head_count").unwrap_or(0);
    if heads == 0 {
        return Ok(());
    }
    let width = keys.scalar("embedding_length").map(|n| n / heads);
    let full = keys.scalar("attention.key_length").or(width);
    let windowed = keys.scalar("attention.key_length_swa").or(full);
    for (key, head) in [
        ("rope.dimension_count", full),
        ("rope.dimension_count_swa", windowed),
    ] {
        let Some(dims) = keys.scalar(key) else {
            continue;
        };
        if !dims.is_multiple_of(2) {
            return keys.refuse(key, dims, "an even number");
        }
        if let Some(head) = head.filter(|head| dims > *head) {
            return keys.refuse(key, dims, format!("{head} at most, the length of a head"));
        }
    }
    sections(keys)
}

/// Of multimodal positions, at least one section turns something.
fn sections(keys: &Keys<'_>) -> Result<(), Refusal> {
    let key = "rope.dimension_sections";
    let Some(Value::Array(array)) = keys.metadata.get(&keys.name(key)) else {
        return Ok(());
    };
    let first = (0..3).filter_map(|i| array.get_u64(i));
    match first.max() {
        Some(0) => keys.refuse(key, "all zero", "a section that is not"),
        _ => Ok(()),
    }
}

fn divisors(keys: &Keys<'_>) -> Result<(), Refusal> {
    for (key, architectures) in DIVISORS {
        let excepted = architectures
            .iter()
            .any(|a| a.strip_prefix('!') == Some(keys.architecture));
        let all = architectures.iter().all(|a| a.starts_with('!'));
        let meant = all && !excepted || architectures.contains(&keys.architecture);
        if meant && keys.count(key) == Some(0) {
            return keys.refuse(key, 0, "more than 0");
        }
    }
    Ok(())
}
