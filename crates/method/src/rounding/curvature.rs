//! A Gram as rounding needs it.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::error::MethodError;
use crate::gram::Gram;
use crate::linear::cholesky;

/// What is added to a Gram's diagonal, as a fraction of its mean: what calibration has not seen
/// must not cost nothing.
pub const DAMPING: f64 = 0.01;

/// Damping is raised by this much until the Gram has a factor.
const RAISE: f64 = 10.0;

/// Attempts to raise it before giving up.
const RAISES: usize = 6;

/// The curvatures of neighbouring blocks of an input's elements, from the first to the last.
pub type Curvatures = Vec<(Range<usize>, Curvature)>;

/// G + damping = U·D·Uᵀ in single precision, n×n, with U unit upper triangular.
#[derive(Debug, Clone)]
pub struct Curvature {
    /// G + damping, symmetric.
    gram: Mat<f32>,
    /// Uᵀ without its diagonal: what the errors of the columns before add to a column.
    lower: Mat<f32>,
}

impl Curvature {
    /// Factors a Gram; `damping` times the mean of its diagonal is added to the diagonal. A Gram of
    /// zeros says nothing and counts as the identity.
    ///
    /// # Errors
    /// [`MethodError::Length`], [`MethodError::GramNotFinite`]; [`MethodError::Setting`] for a damping
    /// that is not positive; [`MethodError::NoConvergence`] where no damping gives a factor.
    pub fn new(gram: Gram<'_>, damping: f64) -> Result<Curvature, MethodError> {
        gram.check(gram.n)?;
        if !(damping > 0.0 && damping.is_finite()) {
            return Err(MethodError::Setting {
                what: "damping",
                value: damping,
            });
        }
        let n = gram.n;
        // In units of the mean square, so that single precision holds it.
        let mean = match gram.mean_square() {
            mean if mean > 0.0 => mean,
            _ => 1.0,
        };
        let mut added = match gram.mean_square() > 0.0 {
            true => damping,
            false => 1.0,
        };
        for _ in 0..RAISES {
            let damped = |i: usize, j: usize| {
                f64::from(gram.values[i * n + j]) / mean + if i == j { added } else { 0.0 }
            };
            // The Cholesky factor of the reversed order is the upper factor of this one.
            let reversed = Mat::from_fn(n, n, |i, j| damped(n - 1 - i, n - 1 - j));
            let Some(c) = cholesky(reversed) else {
                added *= RAISE;
                continue;
            };
            let root = |i: usize, j: usize| c[(n - 1 - i, n - 1 - j)];
            let scaled = |i: usize, j: usize| (root(j, i) / root(i, i)) as f32;
            return Ok(Curvature {
                gram: Mat::from_fn(n, n, |i, j| damped(i, j) as f32),
                lower: Mat::from_fn(n, n, |i, j| if j < i { scaled(i, j) } else { 0.0 }),
            });
        }
        Err(MethodError::NoConvergence)
    }

    /// Columns of the weights.
    pub fn n(&self) -> usize {
        self.gram.nrows()
    }

    /// The square of G + damping on the diagonal from `start` on, row after row.
    pub(super) fn gram_block(&self, start: usize, len: usize) -> Vec<f32> {
        block(self.gram.as_ref(), start, len)
    }

    /// The square of U on the diagonal from `start` on, row after row.
    pub(super) fn upper_block(&self, start: usize, len: usize) -> Vec<f32> {
        block(self.lower.transpose(), start, len)
    }

    /// What the errors of the columns before `start`, a row of W in each column, add to the `len`
    /// columns from there.
    pub(super) fn carried(&self, errors: MatRef<'_, f32>, start: usize, len: usize) -> Mat<f32> {
        let left = self.lower.as_ref().submatrix(start, 0, len, start);
        times(left, errors.subrows(0, start))
    }

    /// (E·G)ᵀ in the `len` columns from `start`.
    pub(super) fn slopes(&self, errors: MatRef<'_, f32>, start: usize, len: usize) -> Mat<f32> {
        times(self.gram.as_ref().subrows(start, len), errors)
    }

    /// The energy of the output of `rows` rows of n weights, trace(W·G·Wᵀ).
    pub fn output_energy(&self, w: &[f32], rows: usize) -> f64 {
        let columns = Mat::from_fn(self.n(), rows, |j, i| w[i * self.n() + j]);
        self.energies(&columns).iter().sum()
    }

    /// eᵀ·G·e of each column.
    pub(super) fn energies(&self, errors: &Mat<f32>) -> Vec<f64> {
        let slopes = self.slopes(errors.as_ref(), 0, self.n());
        let dot = |(a, b): (&[f32], &[f32])| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
        };
        (0..errors.ncols())
            .map(|i| dot((errors.col_as_slice(i), slopes.col_as_slice(i))))
            .collect()
    }
}

fn block(m: MatRef<'_, f32>, start: usize, len: usize) -> Vec<f32> {
    let m = m.submatrix(start, start, len, len);
    (0..len * len).map(|k| m[(k / len, k % len)]).collect()
}

fn times(left: MatRef<'_, f32>, right: MatRef<'_, f32>) -> Mat<f32> {
    let mut out = Mat::zeros(left.nrows(), right.ncols());
    let target: MatMut<'_, f32> = out.as_mut();
    matmul(target, Accum::Replace, left, right, 1.0, Par::Seq);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::correlated;

    #[test]
    fn the_factors_give_the_gram() {
        let n = 24;
        let g = correlated(n, 3 * n, 5);
        let gram = Gram::new(&g, n).unwrap();
        let c = Curvature::new(gram, DAMPING).unwrap();
        let u = |a: usize, b: usize| match a == b {
            true => 1.0,
            false => f64::from(c.lower[(b, a)]),
        };
        // D follows from the diagonal, from the last column on.
        let mut pivots = vec![0.0; n];
        for j in (0..n).rev() {
            let later: f64 = (j + 1..n).map(|k| u(j, k).powi(2) * pivots[k]).sum();
            pivots[j] = f64::from(c.gram[(j, j)]) - later;
            assert!(pivots[j] > 0.0);
        }
        for i in 0..n {
            for j in 0..n {
                let own: f64 = (0..n).map(|k| u(i, k) * pivots[k] * u(j, k)).sum();
                assert!((own - f64::from(c.gram[(i, j)])).abs() < 1e-4, "{i} {j}");
            }
        }
    }

    #[test]
    fn a_gram_of_zeros_counts_as_the_identity() {
        let g = vec![0f32; 16];
        let c = Curvature::new(Gram::new(&g, 4).unwrap(), DAMPING).unwrap();
        assert_eq!(c.gram, Mat::<f32>::identity(4, 4));
        assert_eq!(c.lower, Mat::<f32>::zeros(4, 4));
        assert!(Curvature::new(Gram::new(&g, 4).unwrap(), 0.0).is_err());
    }
}
