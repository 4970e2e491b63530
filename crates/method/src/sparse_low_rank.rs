//! Sparse plus low rank: W ≈ S + B·A, by turns (the alternation of GoDec; Zhou and Tao, 2011, as
//! OATS has it for activations; Zhang and Papyan, 2024). B·A is the whitened truncated
//! decomposition of W − S, which is the best there is for an S; S is W − B·A pruned.
//!
//! Pruning is no exact minimiser of the output error, and so a sweep that raises the error is not
//! taken: the result is that of the best sweep, and the errors that are reported never increase.

use super::error::{MethodError, check_rank, check_weights};
use super::gram::Gram;
use super::sparsegpt;
use super::sparsity::{Pattern, Scope};
use super::svd::{Factors, multiply_out};
use super::wanda;
use super::whitened::Whitening;

/// A sweep that gains less than this fraction of the error is the last one.
const LEAST_GAIN: f64 = 1e-4;

/// How the sparse part is pruned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pruning {
    /// [`wanda`]: kept weights are those of the residual.
    Wanda,
    /// [`sparsegpt`] with this damping, over each row for itself.
    SparseGpt(f64),
}

/// What to make of a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The zeros of the sparse part.
    pub pattern: Pattern,
    /// How they are chosen.
    pub pruning: Pruning,
    /// The rank of the factors.
    pub rank: usize,
    /// Sweeps at most; at least one is made.
    pub sweeps: usize,
    /// The damping of the whitening, as [`Whitening::new`] has it.
    pub damping: f64,
}

/// A sparse matrix and factors whose sum stands for W.
#[derive(Debug, Clone, PartialEq)]
pub struct SparseLowRank {
    /// m rows of n elements, with zeros as the pattern says.
    pub sparse: Vec<f32>,
    /// The low-rank part.
    pub factors: Factors,
    /// The output error per token, ‖(W − S − B·A)·X‖² / tokens, after each sweep; descending.
    pub errors: Vec<f64>,
}

impl SparseLowRank {
    /// S + B·A: m rows of n elements.
    pub fn multiply_out(&self, rows: usize, cols: usize, rank: usize) -> Vec<f32> {
        let mut out = multiply_out(&self.factors.a, &self.factors.b, cols, rows, rank);
        out.iter_mut().zip(&self.sparse).for_each(|(o, s)| *o += s);
        out
    }
}

/// Decomposes W of `rows` rows of n elements, beginning with the sparse part.
///
/// # Errors
/// Those of [`Whitening::decompose`], [`Whitening::factors`] and of the pruning.
pub fn decompose(
    w: &[f32],
    rows: usize,
    gram: Gram<'_>,
    settings: &Settings,
) -> Result<SparseLowRank, MethodError> {
    let n = gram.n;
    check_weights(w, &[rows, n])?;
    check_rank(settings.rank, rows.min(n))?;
    let whitening = Whitening::new(gram, settings.damping)?;
    let mut best: Option<SparseLowRank> = None;
    for _ in 0..settings.sweeps.max(1) {
        let residual = match &best {
            Some(b) => {
                let low = multiply_out(&b.factors.a, &b.factors.b, n, rows, settings.rank);
                difference(w, &low)
            }
            None => w.to_vec(),
        };
        let sparse = match settings.pruning {
            Pruning::Wanda => wanda::prune(&residual, rows, gram, settings.pattern)?,
            Pruning::SparseGpt(damping) => {
                sparsegpt::prune(&residual, rows, gram, settings.pattern, Scope::Row, damping)?
            }
        };
        let rest = difference(w, &sparse);
        let d = whitening.decompose(&rest, rows)?;
        let factors = whitening.factors(&d, &rest, settings.rank)?;
        let low = multiply_out(&factors.a, &factors.b, n, rows, settings.rank);
        // What is measured is the error of the factors as they are, not as they should be.
        let error = gram.output_error(&rest, &low, rows).max(0.0);
        let mut errors = best.as_ref().map_or(Vec::new(), |b| b.errors.clone());
        let last = errors.last().copied();
        if last.is_some_and(|last| error > last) {
            break;
        }
        errors.push(error);
        best = Some(SparseLowRank {
            sparse,
            factors,
            errors,
        });
        if last.is_some_and(|last| error > last * (1.0 - LEAST_GAIN)) {
            break;
        }
    }
    // The first sweep has no error to exceed.
    best.ok_or(MethodError::NoConvergence)
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[cfg(test)]
mod tests {
    use super::super::sample::{correlated, noise};
    use super::*;
    use proptest::prelude::*;

    fn settings(pruning: Pruning) -> Settings {
        Settings {
            pattern: Pattern::Unstructured(0.5),
            pruning,
            rank: 3,
            sweeps: 12,
            damping: 1e-6,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn errors_never_increase_and_are_those_of_the_sum(
            rows in 4usize..20, cols in 4usize..20, seed in any::<u64>(),
        ) {
            let w = noise(rows * cols, seed);
            let g = correlated(cols, 3 * cols, seed);
            let gram = Gram::new(&g, cols).unwrap();
            for pruning in [Pruning::Wanda, Pruning::SparseGpt(0.01)] {
                let settings = settings(pruning);
                let got = decompose(&w, rows, gram, &settings).unwrap();
                prop_assert!(got.errors.windows(2).all(|e| e[1] <= e[0]));
                let pruned = wanda::prune(&w, rows, gram, settings.pattern).unwrap();
                let pruned = gram.output_error(&w, &pruned, rows);
                let sum = got.multiply_out(rows, cols, settings.rank);
                let error = gram.output_error(&w, &sum, rows);
                let total = gram.output_energy(&w, rows);
                prop_assert!((error - got.errors[got.errors.len() - 1]).abs() <= 1e-5 * total);
                prop_assert!(error <= pruned + 1e-6 * total);
                let zeros = settings.pattern.zeros(cols);
                for row in got.sparse.chunks(cols) {
                    prop_assert_eq!(row.iter().filter(|v| **v == 0.0).count(), zeros);
                }
            }
        }
    }

    #[test]
    fn spikes_on_a_low_rank_matrix_are_told_apart() {
        let (m, n, r) = (24, 32, 3);
        let low = multiply_out(&noise(r * n, 1), &noise(m * r, 2), n, m, r);
        let mut w = low.clone();
        for i in 0..m {
            w[i * n + (i * 7) % n] += if i % 2 == 0 { 20.0 } else { -20.0 };
        }
        let mut g = vec![0f32; n * n];
        (0..n).for_each(|j| g[j * (n + 1)] = 1.0);
        let gram = Gram::new(&g, n).unwrap();
        let mut settings = settings(Pruning::Wanda);
        settings.pattern = Pattern::Groups { keep: 1, group: n };
        settings.sweeps = 100;
        let got = decompose(&w, m, gram, &settings).unwrap();
        let last = got.errors[got.errors.len() - 1];
        assert!(last < 1e-3 * gram.output_energy(&low, m), "{last}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let gram = Gram::new(&[1.0], 1).unwrap();
        let mut settings = settings(Pruning::Wanda);
        assert_eq!(
            decompose(&[1.0; 2], 2, gram, &settings).unwrap_err(),
            MethodError::Rank { rank: 3, limit: 1 }
        );
        settings.rank = 1;
        assert!(decompose(&[0.0; 2], 2, gram, &settings).is_ok());
        assert_eq!(
            decompose(&[1.0, f32::NAN], 2, gram, &settings).unwrap_err(),
            MethodError::WeightsNotFinite
        );
    }
}
