//! How much each block does to the residual stream.

use std::collections::HashMap;

use super::observe::{STRIDE, observe};
use super::side_by_side::{FitError, FitOptions};
use crate::architecture::{Model, role, values};
use crate::checkpoint::Source;
use crate::llama::activations::LinearInput;
use crate::llama::model;
use crate::structure::Blocks;

/// The influence of each block: one less the mean cosine between the residual stream before it and
/// after it, over the tokens of a text (ShortGPT, Men et al., 2024). The stream is not seen itself;
/// what attention and output read is the stream but for its length and the weights of a norm, which
/// are divided out.
///
/// # Errors
/// [`FitError`].
pub fn influence(
    model: &Model,
    blocks: &Blocks,
    source: &dyn Source,
    running: &model::Model,
    text: &str,
    options: &FitOptions,
) -> Result<Vec<f64>, FitError> {
    let mut norms: HashMap<String, Vec<f32>> = HashMap::new();
    for tensor in &model.tensors {
        if tensor.name.ends_with("attn_norm.weight") || tensor.name == "output_norm.weight" {
            let values = values(tensor, source, 0..tensor.row_count());
            let values = values.map_err(|e| FitError::Transform {
                tensor: tensor.name.clone(),
                source: e.into(),
            })?;
            norms.insert(tensor.name.clone(), values);
        }
    }
    // The norm between the stream and what such a layer reads.
    let norm_of = |input: &LinearInput| -> Option<&Vec<f32>> {
        let names = input.readers.iter().find_map(|r| match role(&r.weight) {
            (Some(block), "attn_q") => Some(format!("blk.{block}.attn_norm.weight")),
            (None, "output" | "token_embd") => Some("output_norm.weight".to_string()),
            _ => None,
        });
        norms.get(&names?)
    };
    let count = blocks.all.len();
    let mut sums = vec![(0.0, 0usize); count];
    let mut seen = 0;
    let mut before: Vec<f32> = Vec::new();
    observe(
        running,
        text,
        options,
        |input| norm_of(input).is_some(),
        &mut |input, rows| {
            let Some(norm) = norm_of(input) else {
                return Ok(());
            };
            let is_output = seen % (count + 1) == count;
            let rows = rows.chunks_exact(norm.len());
            // The output sees some tokens only, and these are compared.
            let rows = rows.step_by(if is_output { 1 } else { STRIDE });
            let direction = |row: &[f32]| -> Vec<f32> {
                let each = row.iter().zip(norm);
                each.map(|(v, w)| if *w == 0.0 { 0.0 } else { v / w })
                    .collect()
            };
            let stream: Vec<f32> = rows.flat_map(direction).collect();
            if seen % (count + 1) > 0 {
                let (sum, tokens) = &mut sums[seen % (count + 1) - 1];
                let pairs = before.chunks(norm.len()).zip(stream.chunks(norm.len()));
                for (a, b) in pairs {
                    *sum += cosine(a, b);
                    *tokens += 1;
                }
            }
            before = stream;
            seen += 1;
            Ok(())
        },
    )?;
    Ok(sums
        .iter()
        .map(|(sum, n)| 1.0 - sum / (*n).max(1) as f64)
        .collect())
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 {
        dot(a, b) / lengths
    } else {
        1.0
    }
}
