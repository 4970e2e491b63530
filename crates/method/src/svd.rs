//! Truncated singular value decomposition: W ≈ B·A with the least error in the Frobenius norm
//! (Eckart and Young, 1936).
//!
//! The decomposition comes from the eigenvectors of the smaller of WWᵀ and WᵀW, in double
//! precision: a truncated decomposition then costs one product and one symmetric eigenproblem of
//! the smaller side. Squaring loses singular values below about 1e-8 of the largest, which no
//! factor type could hold.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use super::eigen::Eigen;
use super::linear::lower_product;

/// The decomposition could not be computed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SvdError {
    /// NaN or infinite elements.
    #[error("it has elements that are not finite")]
    NotFinite,
    /// The eigenvalue iteration did not end.
    #[error("its singular values did not converge")]
    NoConvergence,
}

/// The spectrum of a matrix and the singular vectors of its smaller side.
#[derive(Debug, Clone)]
pub struct Decomposition {
    /// Singular values, descending.
    pub singular_values: Vec<f64>,
    eigen: Eigen,
}

/// The two factors of a matrix, rows one after another.
#[derive(Debug, Clone, PartialEq)]
pub struct Factors {
    /// r rows of n elements.
    pub a: Vec<f32>,
    /// m rows of r elements.
    pub b: Vec<f32>,
}

/// Decomposes W of `rows` rows of `cols` elements.
///
/// # Errors
/// [`SvdError`].
pub fn decompose(w: &[f32], rows: usize, cols: usize) -> Result<Decomposition, SvdError> {
    if w.iter().any(|v| !v.is_finite()) {
        return Err(SvdError::NotFinite);
    }
    let w = widen(w, rows, cols);
    let gram = if rows <= cols {
        lower_product(w.as_ref(), w.transpose())
    } else {
        lower_product(w.transpose(), w.as_ref())
    };
    let eigen = Eigen::of(gram).map_err(|_| SvdError::NoConvergence)?;
    Ok(Decomposition {
        singular_values: eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect(),
        eigen,
    })
}

impl Decomposition {
    /// The smallest rank that holds a fraction of the squared singular values' sum; at least one.
    pub fn rank_of_energy(&self, fraction: f64) -> u64 {
        let total: f64 = self.singular_values.iter().map(|s| s * s).sum();
        let mut held = 0.0;
        for (i, s) in self.singular_values.iter().enumerate() {
            held += s * s;
            if held >= fraction * total {
                return i as u64 + 1;
            }
        }
        self.singular_values.len().max(1) as u64
    }

    /// Factors of a rank up to the smaller side, for the W that was decomposed.
    ///
    /// Both factors carry the square root of each singular value, so that half-precision products
    /// of either stay in range.
    pub fn factors(&self, w: &[f32], rows: usize, cols: usize, rank: usize) -> Factors {
        let w = widen(w, rows, cols);
        let vectors = self.eigen.leading(rank);
        let root = |i: usize| self.singular_values[i].sqrt();
        if rows <= cols {
            // W = U S Vᵀ: S Vᵀ = Uᵀ W.
            let mut sv = Mat::<f64>::zeros(rank, cols);
            matmul(
                sv.as_mut(),
                Accum::Replace,
                vectors.transpose(),
                w.as_ref(),
                1.0,
                Par::Seq,
            );
            Factors {
                a: narrow(sv.as_ref(), |i, _| divide(1.0, root(i))),
                b: narrow(vectors.as_ref(), |_, j| root(j)),
            }
        } else {
            let mut us = Mat::<f64>::zeros(rows, rank);
            matmul(
                us.as_mut(),
                Accum::Replace,
                w.as_ref(),
                vectors.as_ref(),
                1.0,
                Par::Seq,
            );
            Factors {
                a: narrow(vectors.transpose(), |i, _| root(i)),
                b: narrow(us.as_ref(), |_, j| divide(1.0, root(j))),
            }
        }
    }
}

/// Multiplies factors out: m rows of n elements.
pub fn multiply_out(a: &[f32], b: &[f32], n: usize, m: usize, rank: usize) -> Vec<f32> {
    let mut out = vec![0f32; n * m];
    matmul(
        faer::MatMut::from_row_major_slice_mut(&mut out, m, n),
        Accum::Replace,
        MatRef::from_row_major_slice(b, m, rank),
        MatRef::from_row_major_slice(a, rank, n),
        1.0f32,
        Par::Seq,
    );
    out
}

/// A zero singular value has nothing to scale.
fn divide(x: f64, y: f64) -> f64 {
    if y == 0.0 { 0.0 } else { x / y }
}

fn widen(w: &[f32], rows: usize, cols: usize) -> Mat<f64> {
    let w = MatRef::from_row_major_slice(w, rows, cols);
    Mat::from_fn(rows, cols, |i, j| f64::from(w[(i, j)]))
}

fn narrow(m: MatRef<'_, f64>, scale: impl Fn(usize, usize) -> f64) -> Vec<f32> {
    let mut out = Vec::with_capacity(m.nrows() * m.ncols());
    for i in 0..m.nrows() {
        for j in 0..m.ncols() {
            out.push((m[(i, j)] * scale(i, j)) as f32);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize, seed: u64) -> Vec<f32> {
        use rand::{RngExt, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..len).map(|_| rng.random::<f32>() - 0.5).collect()
    }

    fn error(w: &[f32], approximation: &[f32]) -> f64 {
        w.iter()
            .zip(approximation)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>()
            .sqrt()
    }

    proptest! {
        #[test]
        fn the_error_is_the_discarded_energy(
            rows in 1usize..24, cols in 1usize..24, seed in any::<u64>(),
        ) {
            let w = noise(rows * cols, seed);
            let d = decompose(&w, rows, cols).unwrap();
            let norm: f64 = w.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let mut last = f64::INFINITY;
            for rank in 1..=rows.min(cols) {
                let f = d.factors(&w, rows, cols, rank);
                let got = error(&w, &multiply_out(&f.a, &f.b, cols, rows, rank));
                let discarded: f64 =
                    d.singular_values[rank..].iter().map(|s| s * s).sum::<f64>().sqrt();
                prop_assert!((got - discarded).abs() <= 1e-5 * norm, "{got} {discarded}");
                prop_assert!(got <= last + 1e-6 * norm);
                last = got;
            }
            prop_assert!(last <= 1e-5 * norm);
        }
    }

    #[test]
    fn a_matrix_of_exact_rank_is_recovered() {
        let (m, n, r) = (40, 30, 5);
        let w = multiply_out(&noise(r * n, 1), &noise(m * r, 2), n, m, r);
        let d = decompose(&w, m, n).unwrap();
        let f = d.factors(&w, m, n, r);
        let norm = error(&w, &vec![0.0; w.len()]);
        assert!(error(&w, &multiply_out(&f.a, &f.b, n, m, r)) < 1e-6 * norm);
        assert_eq!(d.rank_of_energy(1.0 - 1e-9), r as u64);
    }

    #[test]
    fn zeros_and_what_is_not_finite() {
        let d = decompose(&[0.0; 12], 3, 4).unwrap();
        let f = d.factors(&[0.0; 12], 3, 4, 2);
        assert_eq!(multiply_out(&f.a, &f.b, 4, 3, 2), [0.0; 12]);
        assert_eq!(
            decompose(&[1.0, f32::NAN], 1, 2).unwrap_err(),
            SvdError::NotFinite
        );
    }
}
