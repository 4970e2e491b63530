//! The few dense operations that the methods share, on one thread: the pipeline runs matrices side
//! by side, and a result then does not depend on the number of threads.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor as llt;
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::traits::RealField;
use faer::{Accum, Mat, MatRef, Par};

/// The lower Cholesky factor of a symmetric matrix, of which only the lower half is read; `None`
/// where it is not positive definite.
pub fn cholesky<T: RealField>(mut matrix: Mat<T>) -> Option<Mat<T>> {
    let n = matrix.nrows();
    let scratch = llt::cholesky_in_place_scratch::<T>(n, Par::Seq, Default::default());
    llt::cholesky_in_place(
        matrix.as_mut(),
        Default::default(),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .ok()?;
    for j in 1..n {
        matrix.col_as_slice_mut(j)[..j].fill(T::zero_impl());
    }
    Some(matrix)
}

/// (L·Lᵀ)⁻¹·x in place.
pub fn solve<T: RealField>(l: &Mat<T>, x: &mut Mat<T>) {
    solve_lower_triangular_in_place(l.as_ref(), x.as_mut(), Par::Seq);
    solve_upper_triangular_in_place(l.transpose(), x.as_mut(), Par::Seq);
}

/// left · right.
pub(super) fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(left.nrows(), right.ncols());
    matmul(out.as_mut(), Accum::Replace, left, right, 1.0, Par::Seq);
    out
}

/// The lower half of a symmetric left · right; zeros above it.
pub(super) fn lower_product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(left.nrows(), right.ncols());
    triangular::matmul(
        out.as_mut(),
        BlockStructure::TriangularLower,
        Accum::Replace,
        left,
        BlockStructure::Rectangular,
        right,
        BlockStructure::Rectangular,
        1.0,
        Par::Seq,
    );
    out
}

/// left · right, of which only the lower half is read: it stands for a triangular matrix.
pub(super) fn product_by_lower(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(left.nrows(), right.ncols());
    triangular::matmul(
        out.as_mut(),
        BlockStructure::Rectangular,
        Accum::Replace,
        left,
        BlockStructure::Rectangular,
        right,
        BlockStructure::TriangularLower,
        1.0,
        Par::Seq,
    );
    out
}

/// Rows one after another, as the columns of the transpose: the same memory order, widened.
pub(super) fn widen_transposed(w: &[f32], rows: usize, cols: usize) -> Mat<f64> {
    Mat::from_fn(cols, rows, |i, j| f64::from(w[j * cols + i]))
}

/// A matrix's columns one after another, each with a factor: the rows of its transpose.
pub(super) fn narrow_columns(m: MatRef<'_, f64>, scale: impl Fn(usize) -> f64) -> Vec<f32> {
    let mut out = Vec::with_capacity(m.nrows() * m.ncols());
    for (j, column) in m.col_iter().enumerate() {
        let scale = scale(j);
        out.extend(column.iter().map(|v| (v * scale) as f32));
    }
    out
}

/// b · a of row-major slices, b of m rows of k elements, a of k rows of n.
pub(super) fn product_f32(b: &[f32], a: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
    let mut out = vec![0f32; m * n];
    matmul(
        faer::MatMut::from_row_major_slice_mut(&mut out, m, n),
        Accum::Replace,
        MatRef::from_row_major_slice(b, m, k),
        MatRef::from_row_major_slice(a, k, n),
        1.0f32,
        Par::Seq,
    );
    out
}

/// Transposes rows of `cols` elements, in tiles that stay in the cache.
pub fn transpose(w: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0f32; w.len()];
    for i0 in (0..rows).step_by(TILE) {
        for j0 in (0..cols).step_by(TILE) {
            for i in i0..rows.min(i0 + TILE) {
                for j in j0..cols.min(j0 + TILE) {
                    out[j * rows + i] = w[i * cols + j];
                }
            }
        }
    }
    out
}
