//! Whitened truncated singular value decomposition: W ≈ B·A with the least error of the layer's
//! *output*, ‖(W − Ŵ)·X‖, over the inputs that calibration saw (SVD-LLM, Wang and others, 2024;
//! the optimum is that of Eckart and Young for W·L, where the Gram matrix is G = L·Lᵀ).
//!
//! With U the leading eigenvectors of W·G·Wᵀ, the best Ŵ of a rank is U·Uᵀ·W: where the outputs are
//! the smaller side, no root of G is needed, and a singular Gram is harmless. Where the inputs are,
//! V holds the leading eigenvectors of (W·L)ᵀ·(W·L), and Ŵ = (W·L·V)·(Vᵀ·L⁻¹). A Gram that has no
//! Cholesky factor, of fewer tokens than inputs, takes its eigenvectors for a root; what no token
//! reached then counts as much as rounding does, so that a full rank still restores W. A Gram of
//! zeros says nothing and counts as the identity.
//!
//! The decomposition is in double precision, on one thread; only the last product, whose result is
//! stored in single precision, is not.

use std::sync::OnceLock;

use faer::linalg::triangular_solve::solve_upper_triangular_in_place;
use faer::{Mat, MatRef, Par};

use super::eigen::Eigen;
use super::error::{MethodError, check_rank, check_weights};
use super::gram::Gram;
use super::linear::{
    cholesky, lower_product, narrow_columns, product, product_by_lower, product_f32, transpose,
    widen_transposed,
};
use super::svd::Factors;

/// Damping of a Gram, as a fraction of its mean diagonal: enough for its root to exist in double
/// precision, too little to move the optimum.
pub const DAMPING: f64 = 1e-6;

/// Eigenvalues of a Gram below this many times n of the largest are rounding of its single
/// precision.
const GRAM_NOISE: f64 = f32::EPSILON as f64;

/// Singular values below this fraction of the largest share its scale, so that no factor's scale
/// leaves the range of half precision.
const SCALE_FLOOR: f64 = 1e-6;

/// What the matrices that read the same input share: the damped Gram and its root, each made when
/// first needed.
pub struct Whitening<'a> {
    gram: Gram<'a>,
    /// The root mean square of the inputs.
    scale: f64,
    /// H with G = H + Hᵀ, in the lower half.
    half: Mat<f64>,
    root: OnceLock<Result<Root, MethodError>>,
}

/// R with R·Rᵀ = G.
enum Root {
    /// Lower triangular.
    Cholesky(Mat<f64>),
    /// Eigenvectors, and the roots of the raised eigenvalues.
    Eigen(Mat<f64>, Vec<f64>),
}

/// The whitened spectrum of a matrix, and the singular vectors of its smaller side.
#[derive(Debug, Clone)]
pub struct Whitened {
    spectrum: Vec<f64>,
    rows: usize,
    scale: f64,
    eigen: Eigen,
}

impl<'a> Whitening<'a> {
    /// Prepares a Gram; `damping` times the mean of its diagonal is added to the diagonal.
    ///
    /// # Errors
    /// [`MethodError::Length`], [`MethodError::GramNotFinite`]; [`MethodError::Setting`] for a
    /// damping that is negative or not finite.
    pub fn new(gram: Gram<'a>, damping: f64) -> Result<Self, MethodError> {
        gram.check(gram.n)?;
        if !(damping >= 0.0 && damping.is_finite()) {
            return Err(MethodError::Setting {
                what: "damping",
                value: damping,
            });
        }
        let mut half = widen_transposed(gram.values, gram.n, gram.n);
        let mean = gram.mean_square();
        let (added, mean) = if mean > 0.0 {
            (damping * mean, mean)
        } else {
            (1.0, 1.0)
        };
        for j in 0..gram.n {
            half[(j, j)] = (half[(j, j)] + added) / 2.0;
        }
        Ok(Self {
            gram,
            scale: mean.sqrt(),
            half,
            root: OnceLock::new(),
        })
    }

    /// The number of inputs.
    pub fn inputs(&self) -> usize {
        self.gram.n
    }

    fn root(&self) -> Result<&Root, MethodError> {
        self.root
            .get_or_init(|| {
                let mut gram = self.half.clone();
                (0..gram.nrows()).for_each(|j| gram[(j, j)] *= 2.0);
                Root::of(gram)
            })
            .as_ref()
            .map_err(Clone::clone)
    }

    /// Rᵀ·X for X of n rows: inputs of equal weight instead of those that were measured.
    pub(super) fn whiten(&self, x: MatRef<'_, f64>) -> Result<Mat<f64>, MethodError> {
        Ok(self.root()?.transposed_times(x))
    }

    /// R⁻ᵀ·X for X of n rows: the way back of [`whiten`](Self::whiten).
    pub(super) fn unwhiten(&self, x: MatRef<'_, f64>) -> Result<Mat<f64>, MethodError> {
        Ok(self.root()?.inverse_transposed_times(x))
    }

    /// Decomposes W of `rows` rows of n elements.
    ///
    /// # Errors
    /// [`MethodError::Length`], [`MethodError::WeightsNotFinite`], [`MethodError::NoConvergence`].
    pub fn decompose(&self, w: &[f32], rows: usize) -> Result<Whitened, MethodError> {
        let n = self.gram.n;
        check_weights(w, &[rows, n])?;
        let wt = widen_transposed(w, rows, n);
        let small = if rows <= n {
            let wh = product_by_lower(wt.transpose(), self.half.as_ref());
            let mut whwt = product(wh.as_ref(), wt.as_ref());
            add_transpose(&mut whwt);
            whwt
        } else {
            let wr = self.root()?.times_on_the_right(wt.transpose());
            lower_product(wr.transpose(), wr.as_ref())
        };
        let eigen = Eigen::of(small)?;
        Ok(Whitened {
            spectrum: eigen.values.iter().map(|v| v.max(0.0)).collect(),
            rows,
            scale: self.scale,
            eigen,
        })
    }

    /// Factors of a rank up to the smaller side, for the W that was decomposed with this Gram.
    ///
    /// Both factors carry the square root of each whitened singular value over the inputs' root
    /// mean square: with the identity for a Gram that is the balance of plain [`svd`](super::svd).
    ///
    /// # Errors
    /// [`MethodError::Rank`], [`MethodError::Length`]; those of the root where the inputs are the
    /// smaller side.
    pub fn factors(&self, d: &Whitened, w: &[f32], rank: usize) -> Result<Factors, MethodError> {
        let (m, n) = (d.rows, self.gram.n);
        check_weights(w, &[m, n])?;
        check_rank(rank, m.min(n))?;
        let vectors = d.eigen.leading(rank);
        let vectors = vectors.as_ref();
        let balance: Vec<f64> = (0..rank).map(|i| d.balance(i)).collect();
        if m <= n {
            let ut = narrow_columns(vectors, |i| 1.0 / balance[i]);
            let b = narrow_columns(vectors, |i| balance[i]);
            Ok(Factors {
                a: product_f32(&ut, w, rank, m, n),
                b: transpose(&b, rank, m),
            })
        } else {
            let root = self.root()?;
            let unit = |i: usize| balance[i] * self.scale;
            let rv = narrow_columns(root.times(vectors).as_ref(), |i| 1.0 / unit(i));
            Ok(Factors {
                a: narrow_columns(root.inverse_transposed_times(vectors).as_ref(), unit),
                b: product_f32(w, &transpose(&rv, rank, n), m, n, rank),
            })
        }
    }
}

impl Whitened {
    /// The squared whitened singular values, descending: the output energy, per token, that each
    /// rank adds. The sum of those beyond a rank is the output error of that rank.
    pub fn spectrum(&self) -> &[f64] {
        &self.spectrum
    }

    /// The output energy of the whole matrix, per token.
    pub fn energy(&self) -> f64 {
        self.spectrum.iter().sum()
    }

    /// The output error of a rank, per token.
    pub fn error(&self, rank: usize) -> f64 {
        self.spectrum.iter().skip(rank).rev().sum()
    }

    /// The smallest rank that holds a fraction of the output energy; at least one.
    pub fn rank_of_energy(&self, fraction: f64) -> usize {
        let total = self.energy();
        let mut held = 0.0;
        for (i, v) in self.spectrum.iter().enumerate() {
            held += v;
            if held >= fraction * total {
                return i + 1;
            }
        }
        self.spectrum.len().max(1)
    }

    fn balance(&self, i: usize) -> f64 {
        let largest = self.spectrum[0].sqrt();
        if largest == 0.0 {
            return 1.0;
        }
        let s = self.spectrum[i].sqrt().max(SCALE_FLOOR * largest);
        (s / self.scale).sqrt()
    }
}

impl Root {
    fn of(gram: Mat<f64>) -> Result<Self, MethodError> {
        if let Some(l) = cholesky(gram.clone()) {
            return Ok(Self::Cholesky(l));
        }
        let n = gram.nrows();
        let eigen = Eigen::of(gram)?;
        let values = &eigen.values;
        let floor = GRAM_NOISE * n as f64 * values.first().copied().unwrap_or(0.0);
        let roots = values.iter().map(|v| v.max(floor).sqrt()).collect();
        Ok(Self::Eigen(eigen.vectors(), roots))
    }

    /// W·R.
    fn times_on_the_right(&self, w: MatRef<'_, f64>) -> Mat<f64> {
        match self {
            Self::Cholesky(l) => product_by_lower(w, l.as_ref()),
            Self::Eigen(q, roots) => {
                let mut out = product(w, q.as_ref());
                for (j, root) in roots.iter().enumerate() {
                    out.col_as_slice_mut(j).iter_mut().for_each(|v| *v *= root);
                }
                out
            }
        }
    }

    /// R·V.
    fn times(&self, v: MatRef<'_, f64>) -> Mat<f64> {
        match self {
            Self::Cholesky(l) => product(l.as_ref(), v),
            Self::Eigen(q, roots) => product(q.as_ref(), scale_rows(v, |i| roots[i]).as_ref()),
        }
    }

    /// Rᵀ·V.
    fn transposed_times(&self, v: MatRef<'_, f64>) -> Mat<f64> {
        match self {
            Self::Cholesky(l) => product(l.transpose(), v),
            Self::Eigen(q, roots) => scale_rows(product(q.transpose(), v).as_ref(), |i| roots[i]),
        }
    }

    /// R⁻ᵀ·V.
    fn inverse_transposed_times(&self, v: MatRef<'_, f64>) -> Mat<f64> {
        match self {
            Self::Cholesky(l) => {
                let mut out = v.to_owned();
                solve_upper_triangular_in_place(l.transpose(), out.as_mut(), Par::Seq);
                out
            }
            Self::Eigen(q, roots) => {
                product(q.as_ref(), scale_rows(v, |i| 1.0 / roots[i]).as_ref())
            }
        }
    }
}

fn scale_rows(v: MatRef<'_, f64>, scale: impl Fn(usize) -> f64) -> Mat<f64> {
    Mat::from_fn(v.nrows(), v.ncols(), |i, j| v[(i, j)] * scale(i))
}

/// M + Mᵀ, the lower half.
fn add_transpose(m: &mut Mat<f64>) {
    for j in 0..m.ncols() {
        for i in j..m.nrows() {
            m[(i, j)] += m[(j, i)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{correlated, distance, energy, noise};
    use super::super::svd::multiply_out;
    use super::*;
    use proptest::prelude::*;

    /// The error of a rank, multiplied out and measured with the Gram.
    fn measured(gram: Gram<'_>, w: &[f32], rows: usize, rank: usize) -> (f64, Whitened) {
        let whitening = Whitening::new(gram, 0.0).unwrap();
        let d = whitening.decompose(w, rows).unwrap();
        let f = whitening.factors(&d, w, rank).unwrap();
        let product = multiply_out(&f.a, &f.b, gram.n, rows, rank);
        (gram.output_error(w, &product, rows), d)
    }

    proptest! {
        #[test]
        fn the_output_error_is_the_discarded_energy(
            rows in 1usize..24, cols in 1usize..24, seed in any::<u64>(),
        ) {
            let w = noise(rows * cols, seed);
            let g = correlated(cols, 3 * cols, seed ^ 1);
            let gram = Gram::new(&g, cols).unwrap();
            let mut last = f64::INFINITY;
            for rank in 1..=rows.min(cols) {
                let (error, d) = measured(gram, &w, rows, rank);
                let total = d.energy();
                // A Gram that rounding has made indefinite has its eigenvalues raised.
                prop_assert!((gram.output_energy(&w, rows) - total).abs() <= 1e-5 * total);
                prop_assert!((error - d.error(rank)).abs() <= 1e-5 * total);
                prop_assert!(error <= last + 1e-5 * total);
                last = error;
            }
        }

        #[test]
        fn fewer_tokens_than_inputs_still_give_the_optimum_and_full_rank_restores(
            rows in 1usize..24, cols in 4usize..24, tokens in 1usize..4, seed in any::<u64>(),
        ) {
            let w = noise(rows * cols, seed);
            let g = correlated(cols, tokens, seed ^ 1);
            let gram = Gram::new(&g, cols).unwrap();
            let side = rows.min(cols);
            // Where the energy is small against this, the Gram's rounding shows.
            let scale = energy(&w) * gram.mean_square() * cols as f64;
            for rank in 1..=side {
                let (error, d) = measured(gram, &w, rows, rank);
                prop_assert!((error - d.error(rank)).abs() <= 1e-5 * scale, "{error} {rank}");
            }
            let whitening = Whitening::new(gram, 0.0).unwrap();
            let d = whitening.decompose(&w, rows).unwrap();
            let f = whitening.factors(&d, &w, side).unwrap();
            let product = multiply_out(&f.a, &f.b, cols, rows, side);
            prop_assert!(distance(&w, &product) <= 1e-3);
        }
    }

    #[test]
    fn a_matrix_of_exact_rank_is_recovered() {
        for (m, n) in [(40, 30), (30, 40)] {
            let r = 5;
            let w = multiply_out(&noise(r * n, 1), &noise(m * r, 2), n, m, r);
            let g = correlated(n, 4 * n, 3);
            let whitening = Whitening::new(Gram::new(&g, n).unwrap(), 1e-6).unwrap();
            let d = whitening.decompose(&w, m).unwrap();
            assert_eq!(d.rank_of_energy(1.0 - 1e-9), r);
            let f = whitening.factors(&d, &w, r).unwrap();
            let product = multiply_out(&f.a, &f.b, n, m, r);
            assert!(distance(&w, &product) < 1e-5);
        }
    }

    #[test]
    fn without_correlation_it_is_plain_svd() {
        let (m, n, r) = (12, 9, 4);
        let w = noise(m * n, 1);
        let mut g = vec![0f32; n * n];
        (0..n).for_each(|j| g[j * (n + 1)] = 4.0);
        let whitening = Whitening::new(Gram::new(&g, n).unwrap(), 0.0).unwrap();
        let d = whitening.decompose(&w, m).unwrap();
        let plain = super::super::svd::decompose(&w, m, n).unwrap();
        for (energy, s) in d.spectrum().iter().zip(&plain.singular_values) {
            assert!((energy - 4.0 * s * s).abs() < 1e-9);
        }
        let f = whitening.factors(&d, &w, r).unwrap();
        let p = plain.factors(&w, m, n, r);
        // An eigenvector's sign is free.
        for (x, y) in f.a.iter().zip(&p.a).chain(f.b.iter().zip(&p.b)) {
            assert!((x.abs() - y.abs()).abs() < 1e-5);
        }
    }

    #[test]
    fn zeros_are_safe_on_either_side() {
        for (m, n) in [(3, 4), (4, 3)] {
            let g = correlated(n, 8, 1);
            let (error, d) = measured(Gram::new(&g, n).unwrap(), &vec![0.0; m * n], m, 2);
            assert_eq!((error, d.energy()), (0.0, 0.0));
            // A Gram of zeros counts as the identity.
            let w = noise(m * n, 2);
            let zeros = vec![0.0; n * n];
            let whitening = Whitening::new(Gram::new(&zeros, n).unwrap(), 0.01).unwrap();
            let d = whitening.decompose(&w, m).unwrap();
            assert!((d.energy() - energy(&w)).abs() < 1e-9);
            assert!(whitening.factors(&d, &w, 2).is_ok());
        }
    }

    #[test]
    fn what_is_not_finite_or_of_another_width_is_refused() {
        let g = correlated(3, 8, 1);
        let gram = Gram::new(&g, 3).unwrap();
        let whitening = Whitening::new(gram, 0.0).unwrap();
        let decompose = |w: &[f32], rows| whitening.decompose(w, rows).unwrap_err();
        let nan = [0.0, f32::NAN, 0.0];
        assert_eq!(decompose(&nan, 1), MethodError::WeightsNotFinite);
        assert_eq!(
            decompose(&[0.0; 4], 1),
            MethodError::Length {
                expected: 3,
                found: 4
            }
        );
        let mut bad = g.clone();
        bad[1] = f32::INFINITY;
        assert_eq!(Gram::new(&bad, 3).unwrap_err(), MethodError::GramNotFinite);
        assert!(Whitening::new(gram, f64::NAN).is_err());
        let d = whitening.decompose(&[1.0; 6], 2).unwrap();
        for rank in [0, 3] {
            assert_eq!(
                whitening.factors(&d, &[1.0; 6], rank).unwrap_err(),
                MethodError::Rank { rank, limit: 2 }
            );
        }
    }
}
