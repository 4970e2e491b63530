//! Which layers look at a window of what was before, and which at everything.

use dwindle_formats::gguf::Metadata;
use serde_json::Value;

use super::Error;
use super::config::{Config, bad};
use super::dims::Dims;
use super::families::Windows;

/// Writes the window of a model, and its layers where llama.cpp must be told.
pub(super) fn describe(
    windows: Windows,
    config: &Config,
    dims: &Dims,
    architecture: &str,
    metadata: &mut Metadata,
) -> Result<(), Error> {
    let key = format!("{architecture}.attention.sliding_window");
    match windows {
        Windows::ByLayer => by_layer_types(config, dims, architecture, metadata),
        Windows::At(layers) => {
            let window = config.get("sliding_window");
            if let Some(found) = window.filter(|_| dims.layers != layers) {
                let expected = format!(
                    "null, since llama.cpp knows windows of models with {layers} layers only"
                );
                return Err(bad("sliding_window", found, &expected));
            }
            by_layer_types(config, dims, architecture, metadata)
        }
        Windows::But(each) => {
            every(config, each)?;
            if let Some(window) = config.count(&["sliding_window"])? {
                metadata.set(key, window);
            }
            Ok(())
        }
        Windows::Everywhere => {
            metadata.set(key, config.count(&["sliding_window"])?.unwrap_or(0));
            Ok(())
        }
        Windows::Neo => neo_windows(config, dims, architecture, metadata),
    }
}

/// The window, and which layers have it. A model whose layers all see everything has none.
fn by_layer_types(
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

/// Holds the layers that have a window against what llama.cpp knows: all but each one of so many.
fn every(config: &Config, each: u64) -> Result<(), Error> {
    let Some(found @ Value::Array(kinds)) = config.get("layer_types") else {
        return Ok(());
    };
    let expected = |layer: u64| !(layer + 1).is_multiple_of(each);
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
