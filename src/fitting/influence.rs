//! Measures how much each block changes the residual stream.

use std::collections::HashMap;

use super::observe::{STRIDE, observe};
use super::side_by_side::{FitError, FitText};
use crate::architecture::{ModelTensor, role};
use crate::llama::activations::LinearInput;
use crate::llama::model;
use crate::plan::{Subject, TensorError};
use crate::structure::Whole;

/// The influence of each block: one less the mean cosine between the residual stream before it and
/// after it, over the tokens of a text (ShortGPT, Men et al., 2024). The stream is not seen itself;
/// what attention and output read is the stream but for its length and the weights of a norm, which
/// are divided out.
///
/// # Errors
/// [`FitError`].
pub fn influence(
    whole: &Whole<'_>,
    running: &model::Model,
    text: &FitText<'_>,
) -> Result<Vec<f64>, FitError> {
    let norms = norms(&whole.subject)?;
    let count = whole.blocks.all.len();
    // Before which block the stream is read, or `count` for behind the last, and the norm between
    // the stream and what is read of it.
    let place_of = |input: &LinearInput| -> Option<(usize, &Vec<f32>)> {
        let (place, name) = input.readers.iter().find_map(|r| match role(&r.weight) {
            (Some(block), "attn_q") => {
                Some((block as usize, format!("blk.{block}.attn_norm.weight")))
            }
            (None, "output" | "token_embd") => Some((count, "output_norm.weight".to_string())),
            _ => None,
        })?;
        norms.get(&name).map(|norm| (place, norm))
    };
    let mut sums = vec![(0.0, 0usize); count];
    // The place that was seen last, and the stream there.
    let mut before: (usize, Vec<f32>) = (count, Vec::new());
    observe(
        running,
        text,
        |input| place_of(input).is_some(),
        &mut |input, rows| {
            let Some((place, norm)) = place_of(input) else {
                return Ok(());
            };
            let rows = rows.chunks_exact(norm.len());
            // The output sees some tokens only, and these are compared.
            let rows = rows.step_by(if place == count { 1 } else { STRIDE });
            let direction = |row: &[f32]| -> Vec<f32> {
                let each = row.iter().zip(norm);
                each.map(|(v, w)| if *w == 0.0 { 0.0 } else { v / w })
                    .collect()
            };
            let stream: Vec<f32> = rows.flat_map(direction).collect();
            let (last, old) = &before;
            if *last + 1 == place {
                let (sum, tokens) = &mut sums[*last];
                for (a, b) in old.chunks(norm.len()).zip(stream.chunks(norm.len())) {
                    *sum += cosine(a, b);
                    *tokens += 1;
                }
            }
            before = (place, stream);
            Ok(())
        },
    )?;
    // A block before or behind which the stream was not seen counts as one that turns it round.
    let mean = |(sum, n): &(f64, usize)| 1.0 - sum / (*n).max(1) as f64;
    Ok(sums.iter().map(mean).collect())
}

/// The weights of the norms that stand between the stream and what is read of it.
fn norms(subject: &Subject<'_>) -> Result<HashMap<String, Vec<f32>>, FitError> {
    let is_read =
        |t: &&ModelTensor| t.name.ends_with("attn_norm.weight") || t.name == "output_norm.weight";
    let tensors = subject.model.tensors.iter().filter(is_read);
    tensors
        .map(|tensor| {
            let values = subject.values(tensor);
            let values = values.map_err(TensorError::of(&tensor.name))?;
            Ok((tensor.name.clone(), values))
        })
        .collect()
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
