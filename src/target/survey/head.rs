//! The divergence of what streams give behind the last block.

use rayon::prelude::*;

use crate::blockwise::{Head, Probe};
use crate::plan::TensorError;

/// Tokens whose logits are in memory at a time.
const TOKENS: usize = 256;

/// The mean KL divergence of the predictions of each of `others` from those of `base`: normed rows of
/// the same tokens, and a type in which the output layer is rounded.
///
/// # Errors
/// Values that can't be read.
pub fn divergences(
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
