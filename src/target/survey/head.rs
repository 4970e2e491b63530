//! The divergence of what streams give behind the last block, and what of it is each tensor's.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;

use super::super::candidates::COARSE;
use super::Survey;
use super::block::Surveyor;
use crate::blockwise::{Head, Probe, WalkError};
use crate::ggml;
use crate::plan::TensorError;
use crate::target::BudgetError;

/// Tokens whose logits are in memory at a time.
const TOKENS: usize = 256;

/// Measures the divergences of all streams, and shares them among the tensors.
pub fn finish(mut surveyor: Surveyor<'_>) -> Result<Survey, BudgetError> {
    let mut klds = HashMap::new();
    let mut coarse = 0.0;
    if let Some(head) = surveyor
        .head
        .as_ref()
        .filter(|_| !surveyor.normed.is_empty())
    {
        let mut others: Vec<(&[f32], Option<Probe<'_>>)> = Vec::new();
        for rounded in &surveyor.rounded {
            others.push((&rounded.normed, None));
        }
        let mut parts: Vec<BTreeMap<usize, f64>> =
            surveyor.rounded.iter().map(|r| r.parts.clone()).collect();
        let own = surveyor.found.get(&head.tensor);
        if let Some(own) = own.filter(|_| surveyor.has_output()) {
            let probe = Probe {
                ty: own.candidates.probe.ty,
                importance: &own.importance,
            };
            others.push((&surveyor.normed, Some(probe)));
            parts.push(BTreeMap::from([(head.tensor, 1.0)]));
        }
        let normed = match &surveyor.coarse {
            Some(coarse) => coarsened(&coarse.normed, head.width())?,
            None => Vec::new(),
        };
        if !normed.is_empty() {
            let probe = Probe {
                ty: COARSE,
                importance: &[],
            };
            others.push((&normed, Some(probe)));
        }
        let mut found = divergences(head, &surveyor.normed, &others)?;
        if !normed.is_empty() {
            coarse = found.pop().unwrap_or(0.0);
        }
        for (kld, parts) in found.into_iter().zip(&parts) {
            shared(kld, parts, &mut klds);
        }
    }
    for (index, surveyed) in &mut surveyor.found {
        surveyed.kld = klds.get(index).copied().unwrap_or(0.0);
    }
    Ok(Survey {
        coarse,
        tensors: surveyor.found.into_values().collect(),
        output: surveyor.output,
    })
}

/// Rows as products with [`COARSE`] weights read them; unchanged where they don't fit it.
fn coarsened(rows: &[f32], width: usize) -> Result<Vec<f32>, BudgetError> {
    let mut out = rows.to_vec();
    if (width as u64).is_multiple_of(COARSE.block_len()) {
        let read = |e: ggml::GgmlError| BudgetError::Walk(WalkError::Treatment(e.into()));
        let bytes = ggml::quantized(COARSE, rows, width, None).map_err(read)?;
        ggml::dequantize(COARSE, &bytes, &mut out).map_err(read)?;
    }
    Ok(out)
}

/// Shares a divergence among tensors by their parts.
fn shared(kld: f64, parts: &BTreeMap<usize, f64>, into: &mut HashMap<usize, f64>) {
    let total: f64 = parts.values().sum();
    for (tensor, part) in parts {
        let share = if total > 0.0 {
            part / total
        } else {
            1.0 / parts.len() as f64
        };
        *into.entry(*tensor).or_default() += kld * share;
    }
}

/// The mean KL divergence of the predictions of each of `others` from those of `base`: normed rows of
/// the same tokens, and a type in which the output layer is rounded.
///
/// # Errors
/// Values that can't be read.
fn divergences(
    head: &Head<'_>,
    base: &[f32],
    others: &[(&[f32], Option<Probe<'_>>)],
) -> Result<Vec<f64>, TensorError> {
    let (n, vocabulary) = (head.width(), head.vocabulary());
    let tokens = base.len() / n;
    let mut sums = vec![0.0; others.len()];
    for first in (0..tokens).step_by(TOKENS) {
        let rows = first * n..(first + TOKENS).min(tokens) * n;
        let expected = head.logits(&base[rows.clone()], None)?;
        for (sum, (other, probe)) in sums.iter_mut().zip(others) {
            let found = head.logits(&other[rows.clone()], *probe)?;
            let pairs = expected
                .par_chunks(vocabulary)
                .zip(found.par_chunks(vocabulary));
            let each: Vec<f64> = pairs.map(|(p, q)| divergence(p, q)).collect();
            *sum += each.iter().sum::<f64>();
        }
    }
    Ok(sums.into_iter().map(|s| s / tokens.max(1) as f64).collect())
}

/// The KL divergence of the distribution of one row of logits from another's.
fn divergence(base: &[f32], other: &[f32]) -> f64 {
    let norm = |row: &[f32]| -> (f32, f64) {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|v| f64::from((v - most).exp())).sum();
        (most, sum)
    };
    let ((p_most, p_sum), (q_most, q_sum)) = (norm(base), norm(other));
    let shift = (q_sum / p_sum).ln() + f64::from(q_most) - f64::from(p_most);
    let terms = base.iter().zip(other).map(|(p, q)| {
        let share = f64::from((p - p_most).exp());
        share * (f64::from(*p) - f64::from(*q) + shift)
    });
    (terms.sum::<f64>() / p_sum).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::divergence;

    #[test]
    fn the_divergence_is_that_of_the_distributions() {
        let p = [0.5f64, 0.3, 0.2];
        let q = [0.2f64, 0.5, 0.3];
        let expected: f64 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        let logits =
            |d: &[f64], by: f32| -> Vec<f32> { d.iter().map(|v| v.ln() as f32 + by).collect() };
        let found = divergence(&logits(&p, 3.0), &logits(&q, -2.0));
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        assert!(divergence(&logits(&p, 0.0), &logits(&p, 1.0)) < 1e-6);
    }
}
