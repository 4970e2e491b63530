//! Queries and keys with fewer rotary pairs: the kept rows and their frequencies.

use dwindle_formats::gguf::Value;

use super::StructureError;
use super::blocks::{Blocks, Whole};
use super::pairs::Pairs;
use crate::architecture::{Assembly, Model, ModelTensor, role};

const FACTORS: &str = "rope_freqs.weight";

/// Checks a model against what fewer pairs need.
///
/// # Errors
/// [`StructureError::Target`] for heads that are turned in part, normalised, or by YaRN.
pub fn check(model: &Model, blocks: &Blocks) -> Result<(), StructureError> {
    let refuse = |found: String, expected: &str| {
        Err(StructureError::Target {
            what: "the rotary embedding for `key_length`",
            found,
            expected: expected.to_string(),
        })
    };
    let key = |name: &str| format!("{}.rope.{name}", model.architecture);
    let number = |name: &str| model.metadata.get(&key(name)).and_then(Value::as_u64);
    if let Some(turned) = number("dimension_count").filter(|n| *n != blocks.key_length as u64) {
        return refuse(
            format!("for {turned} of {} elements", blocks.key_length),
            "one for whole heads",
        );
    }
    if let Some(kind) = model
        .metadata
        .get(&key("scaling.type"))
        .and_then(Value::as_str)
        && !["none", "linear"].contains(&kind)
    {
        return refuse(format!("scaled by `{kind}`"), "none, or linear scaling");
    }
    let is_bad = |t: &&ModelTensor| {
        let role = role(&t.name).1;
        role.starts_with("rope_factors") || ["attn_q_norm", "attn_k_norm"].contains(&role)
    };
    if let Some(tensor) = model.tensors.iter().find(is_bad) {
        return refuse(
            format!("beside `{}`", tensor.name),
            "no norm of queries and keys, whose elements all count, and no long factors",
        );
    }
    Ok(())
}

/// What the model multiplies scores by, where it is not the root of the keys' length that llama.cpp
/// divides by.
pub fn own_scale(model: &Model) -> Option<f64> {
    let key = format!("{}.attention.scale", model.architecture);
    let scale = model.metadata.get(&key).and_then(Value::as_f64);
    scale.filter(|scale| *scale != 0.0)
}

/// The angle by which a pair turns from one position to the next, for each pair.
///
/// # Errors
/// [`StructureError::Read`].
pub fn frequencies(whole: &Whole<'_>) -> Result<Vec<f64>, StructureError> {
    let (model, blocks) = (whole.subject.model, &whole.blocks);
    let key = |name: &str| format!("{}.rope.{name}", model.architecture);
    let number = |name: &str| model.metadata.get(&key(name)).and_then(Value::as_f64);
    let scale = number("scaling.factor").filter(|f| *f > 0.0).unwrap_or(1.0);
    let base = number("freq_base").unwrap_or(10_000.0);
    let factors = own_factors(whole)?;
    let pairs = 0..blocks.key_length / 2;
    Ok(pairs
        .map(|i| {
            let factor = factors.as_ref().and_then(|f| f.get(i)).copied();
            let exponent = -2.0 * i as f64 / blocks.key_length as f64;
            base.powf(exponent) / scale / f64::from(factor.unwrap_or(1.0))
        })
        .collect())
}

fn own_factors(whole: &Whole<'_>) -> Result<Option<Vec<f32>>, StructureError> {
    let tensor = whole.subject.tensor(FACTORS);
    tensor.map(|t| whole.values(t)).transpose()
}

/// The factors that the frequencies of fewer pairs are divided by, so that each turns as it did.
pub(super) fn factors(whole: &Whole<'_>, pairs: &Pairs) -> Result<ModelTensor, StructureError> {
    let (model, blocks) = (whole.subject.model, &whole.blocks);
    let key = format!("{}.rope.freq_base", model.architecture);
    let base = model.metadata.get(&key).and_then(Value::as_f64);
    let base = base.unwrap_or(10_000.0);
    let own = own_factors(whole)?;
    let kept = pairs.kept.iter().enumerate().map(|(place, pair)| {
        let place = place as f64 / pairs.kept.len() as f64;
        let was = *pair as f64 / (blocks.key_length / 2) as f64;
        let factor = own.as_ref().and_then(|f| f.get(*pair)).copied();
        (base.powf(was - place) * f64::from(factor.unwrap_or(1.0))) as f32
    });
    let values: Vec<f32> = kept.collect();
    Ok(ModelTensor {
        name: FACTORS.to_string(),
        shape: vec![values.len() as u64],
        assembly: Assembly::of_floats(&values),
        always_f32: true,
    })
}
