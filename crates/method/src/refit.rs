//! Fitting a layer to rows of what it reads and of what it should give.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Accum, Mat, MatRef, Par};

use super::error::{MethodError, check_weights};
use super::linear::{cholesky, widen_transposed};

/// Rows that are summed in single precision.
const PANEL: usize = 2048;

/// The W of `rows` rows that comes nearest to giving the rows of `targets` for those of `inputs`, of
/// n elements: it minimises ‖W·X − T‖² / tokens + λ·‖W − W₀‖², λ being the fraction `ridge` of the
/// inputs' mean square.
///
/// # Errors
/// [`MethodError::Length`], [`MethodError::GramNotFinite`]; [`MethodError::NoConvergence`] without
/// inputs and without a ridge.
pub fn regress(
    inputs: &[f32],
    n: usize,
    targets: &[f32],
    prior: &[f32],
    ridge: f64,
) -> Result<Vec<f32>, MethodError> {
    let rows = prior.len() / n.max(1);
    check_weights(prior, &[rows, n])?;
    let mut gram = second_moment(inputs, n, inputs, n)?;
    let mut across = second_moment(inputs, n, targets, rows)?;
    let mean = (0..n).map(|j| gram[(j, j)]).sum::<f64>() / n as f64;
    let lambda = ridge * mean;
    (0..n).for_each(|j| gram[(j, j)] += lambda);
    across += faer::Scale(lambda) * widen_transposed(prior, rows, n);
    let l = cholesky(gram).ok_or(MethodError::NoConvergence)?;
    let par = Par::rayon(0);
    solve_lower_triangular_in_place(l.as_ref(), across.as_mut(), par);
    solve_upper_triangular_in_place(l.transpose(), across.as_mut(), par);
    let columns = (0..rows).flat_map(|i| across.col_as_slice(i));
    Ok(columns.map(|v| *v as f32).collect())
}

/// What W, of `rows` rows of n elements, gives for rows of n elements.
pub fn forward(inputs: &[f32], w: &[f32], n: usize, rows: usize) -> Vec<f32> {
    let tokens = inputs.len() / n.max(1);
    let mut out = vec![0f32; tokens * rows];
    matmul(
        faer::MatMut::from_row_major_slice_mut(&mut out, tokens, rows),
        Accum::Replace,
        MatRef::from_row_major_slice(inputs, tokens, n),
        MatRef::from_row_major_slice(w, rows, n).transpose(),
        1.0,
        Par::rayon(0),
    );
    out
}

/// X·Yᵀ / tokens of rows of n and of m elements: n rows of m.
fn second_moment(x: &[f32], n: usize, y: &[f32], m: usize) -> Result<Mat<f64>, MethodError> {
    let tokens = x.len().checked_div(n).unwrap_or(0);
    if n == 0 || m == 0 || x.len() != tokens * n || y.len() != tokens * m {
        return Err(MethodError::Length {
            expected: tokens * m,
            found: y.len(),
        });
    }
    let mut total = Mat::<f64>::zeros(n, m);
    let mut sum = Mat::<f32>::zeros(n, m);
    for (x, y) in x.chunks(PANEL * n).zip(y.chunks(PANEL * m)) {
        let x = MatRef::from_row_major_slice(x, x.len() / n, n);
        let y = MatRef::from_row_major_slice(y, y.len() / m, m);
        let par = Par::rayon(0);
        matmul(sum.as_mut(), Accum::Replace, x.transpose(), y, 1.0, par);
        for j in 0..m {
            let sums = total
                .col_as_slice_mut(j)
                .iter_mut()
                .zip(sum.col_as_slice(j));
            sums.for_each(|(t, s)| *t += f64::from(*s));
        }
    }
    let share = 1.0 / tokens.max(1) as f64;
    for j in 0..m {
        let column = total.col_as_slice_mut(j);
        if column.iter().any(|v| !v.is_finite()) {
            return Err(MethodError::GramNotFinite);
        }
        column.iter_mut().for_each(|v| *v *= share);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::super::sample::{distance, noise};
    use super::*;

    #[test]
    fn targets_are_met_or_the_prior_is_kept() {
        let (n, rows) = (8, 6);
        let (w, x) = (noise(rows * n, 1), noise(n * 5000, 2));
        let targets = forward(&x, &w, n, rows);
        let prior = noise(rows * n, 3);
        let met = regress(&x, n, &targets, &prior, 1e-6).unwrap();
        assert!(distance(&w, &met) < 1e-4, "{}", distance(&w, &met));
        let kept = regress(&x, n, &targets, &prior, 1e6).unwrap();
        assert!(distance(&prior, &kept) < 1e-4);
        let between = regress(&x, n, &targets, &prior, 1.0).unwrap();
        let middle: Vec<f32> = w.iter().zip(&prior).map(|(a, b)| (a + b) / 2.0).collect();
        assert!(distance(&middle, &between) < 0.1);
        assert!(regress(&x, n, &targets[1..], &prior, 1.0).is_err());
    }
}
