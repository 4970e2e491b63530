//! The symmetric eigenproblem, on one thread: a tridiagonal form by reflections, its
//! eigenvectors by divide and conquer (Cuppen, 1981), and the way back for as many of them as are
//! asked for.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{self, ComputeEigenvectors, tridiag};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch as reflect_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj as reflect,
};
use faer::linalg::qr::no_pivoting::factor::recommended_block_size;
use faer::{Conj, Mat, MatRef, Par};

use super::error::MethodError;

/// The eigenvalues of a symmetric matrix, and what its eigenvectors are made of.
#[derive(Debug, Clone)]
pub struct Eigen {
    /// Descending.
    pub values: Vec<f64>,
    /// The eigenvectors of the tridiagonal form, their values ascending.
    inner: Mat<f64>,
    /// The matrix after the reduction: below its diagonal are the reflections.
    reduced: Mat<f64>,
    blocks: Mat<f64>,
}

impl Eigen {
    /// Decomposes a matrix, not empty, of which only the lower half is read.
    ///
    /// # Errors
    /// [`MethodError::NoConvergence`].
    pub fn of(matrix: Mat<f64>) -> Result<Self, MethodError> {
        let n = matrix.nrows();
        let mut reduced = matrix;
        let mut blocks = Mat::zeros(recommended_block_size::<f64>(n, n), n.saturating_sub(1));
        let scratch = tridiag::tridiag_in_place_scratch::<f64>(n, Par::Seq, Default::default());
        tridiag::tridiag_in_place(
            reduced.as_mut(),
            blocks.as_mut(),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            Default::default(),
        );
        let (mut diagonal, mut below) = (Diag::zeros(n), Diag::zeros(n));
        for i in 0..n {
            diagonal[i] = reduced[(i, i)];
            if i + 1 < n {
                below[i] = reduced[(i + 1, i)];
            }
        }
        let (mut values, mut inner) = (Diag::zeros(n), Mat::zeros(n, n));
        let scratch = evd::self_adjoint_evd_scratch::<f64>(
            n,
            ComputeEigenvectors::Yes,
            Par::Seq,
            Default::default(),
        );
        evd::tridiagonal_self_adjoint_evd(
            diagonal.as_ref(),
            below.as_ref(),
            values.as_mut(),
            Some(inner.as_mut()),
            Par::Seq,
            MemStack::new(&mut MemBuffer::new(scratch)),
            Default::default(),
        )
        .map_err(|_| MethodError::NoConvergence)?;
        Ok(Self {
            values: (0..n).rev().map(|i| values[i]).collect(),
            inner,
            reduced,
            blocks,
        })
    }

    /// The eigenvectors of the `count` largest eigenvalues, in that order, in the columns.
    pub fn leading(&self, count: usize) -> Mat<f64> {
        let n = self.values.len();
        let largest = self.inner.as_ref().subcols(n - count, count);
        let mut vectors = largest.reverse_cols().to_owned();
        if n > 1 {
            let scratch = reflect_scratch::<f64>(n - 1, self.blocks.nrows(), count);
            reflect(
                self.reduced.as_ref().submatrix(1, 0, n - 1, n - 1),
                self.blocks.as_ref(),
                Conj::No,
                vectors.as_mut().subrows_mut(1, n - 1),
                Par::Seq,
                MemStack::new(&mut MemBuffer::new(scratch)),
            );
        }
        vectors
    }

    /// All eigenvectors, in the columns.
    pub fn vectors(&self) -> Mat<f64> {
        self.leading(self.values.len())
    }
}

/// The eigenvalues alone, descending, of a matrix of which only the lower half is read.
///
/// # Errors
/// [`MethodError::NoConvergence`].
pub(super) fn eigenvalues(matrix: MatRef<'_, f64>) -> Result<Vec<f64>, MethodError> {
    let n = matrix.nrows();
    let mut values = Diag::zeros(n);
    let scratch = evd::self_adjoint_evd_scratch::<f64>(
        n,
        ComputeEigenvectors::No,
        Par::Seq,
        Default::default(),
    );
    evd::self_adjoint_evd(
        matrix,
        values.as_mut(),
        None,
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| MethodError::NoConvergence)?;
    Ok((0..n).rev().map(|i| values[i]).collect())
}

#[cfg(test)]
mod tests {
    use super::super::linear::product;
    use super::super::sample::noise;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn vectors_are_orthonormal_and_restore_the_matrix(n in 1usize..40, seed in any::<u64>()) {
            let x = noise(n * n, seed);
            let x = Mat::from_fn(n, n, |i, j| f64::from(x[i * n + j]));
            let matrix = product(x.as_ref(), x.transpose());
            let eigen = Eigen::of(matrix.clone()).unwrap();
            prop_assert!(eigen.values.is_sorted_by(|a, b| a >= b));
            let v = eigen.vectors();
            let scaled = Mat::from_fn(n, n, |i, j| v[(i, j)] * eigen.values[j]);
            let back = product(scaled.as_ref(), v.transpose());
            let square = product(v.transpose(), v.as_ref());
            let largest = eigen.values.first().copied().unwrap_or(0.0);
            for j in 0..n {
                for i in 0..n {
                    prop_assert!((back[(i, j)] - matrix[(i, j)]).abs() <= 1e-12 * largest);
                    let one = f64::from(u8::from(i == j));
                    prop_assert!((square[(i, j)] - one).abs() <= 1e-12);
                }
            }
            let half = eigen.leading(n / 2) - v.as_ref().subcols(0, n / 2);
            prop_assert!(half.norm_max() <= 1e-12);
            for (a, b) in eigenvalues(matrix.as_ref()).unwrap().iter().zip(&eigen.values) {
                prop_assert!((a - b).abs() <= 1e-12 * largest);
            }
        }
    }
}
