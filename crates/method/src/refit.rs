//! Fitting a layer to inputs that differ from those it was trained for, because the layers before
//! it were compressed: the W* that comes nearest to W·X when it is given X̃.
//!
//! W* = W + W·(C − G̃)·(G̃ + λ)⁻¹ with C = X·X̃ᵀ and G̃ = X̃·X̃ᵀ over the tokens minimises
//! ‖W·X − W*·X̃‖² + λ·‖W − W*‖²: what the tokens say little of stays as it was.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Accum, Mat, MatRef, Par};

use super::error::{MethodError, check_weights};
use super::linear::{cholesky, product, widen_transposed};

/// λ as a fraction of the mean of G̃'s diagonal.
const RIDGE: f64 = 0.1;

/// Rows that are summed in single precision.
const PANEL: usize = 2048;

/// Second moments of pairs of inputs.
#[derive(Debug, Clone)]
pub struct Moments {
    n: usize,
    /// X̃·X̃ᵀ / tokens.
    gram: Mat<f64>,
    /// X·X̃ᵀ / tokens.
    cross: Mat<f64>,
}

impl Moments {
    /// Of rows of `n` elements: `x` as a layer was trained for, `y` as it gets them now.
    ///
    /// # Errors
    /// [`MethodError::Length`] where they are not as many, or no whole rows;
    /// [`MethodError::GramNotFinite`].
    pub fn of(x: &[f32], y: &[f32], n: usize) -> Result<Moments, MethodError> {
        if x.len() != y.len() || n == 0 || !x.len().is_multiple_of(n) {
            return Err(MethodError::Length {
                expected: x.len(),
                found: y.len(),
            });
        }
        let gram = second_moment(y, n, y, n)?;
        let cross = second_moment(x, n, y, n)?;
        Ok(Moments { n, gram, cross })
    }

    /// G̃ in single precision: n rows of n elements.
    pub fn gram(&self) -> Vec<f32> {
        // Symmetric, so columns are rows.
        let columns = (0..self.n).flat_map(|j| self.gram.col_as_slice(j));
        columns.map(|v| *v as f32).collect()
    }

    /// W* for a W of `rows` rows of n elements.
    ///
    /// # Errors
    /// [`MethodError::Length`], [`MethodError::WeightsNotFinite`].
    pub fn refit(&self, w: &[f32], rows: usize) -> Result<Vec<f32>, MethodError> {
        let n = self.n;
        check_weights(w, &[rows, n])?;
        let mean = (0..n).map(|j| self.gram[(j, j)]).sum::<f64>() / n as f64;
        if mean <= 0.0 {
            return Ok(w.to_vec());
        }
        let mut damped = self.gram.clone();
        (0..n).for_each(|j| damped[(j, j)] += RIDGE * mean);
        let Some(l) = cholesky(damped) else {
            return Ok(w.to_vec());
        };
        // Columns are W's rows: (G̃ + λ)·Δᵀ = (C − G̃)ᵀ·Wᵀ.
        let wt = widen_transposed(w, rows, n);
        let difference = &self.cross - &self.gram;
        let mut delta = product(difference.transpose(), wt.as_ref());
        let par = Par::rayon(0);
        solve_lower_triangular_in_place(l.as_ref(), delta.as_mut(), par);
        solve_upper_triangular_in_place(l.transpose(), delta.as_mut(), par);
        let mut out = Vec::with_capacity(w.len());
        for i in 0..rows {
            let pairs = wt.col_as_slice(i).iter().zip(delta.col_as_slice(i));
            out.extend(pairs.map(|(w, d)| (w + d) as f32));
        }
        Ok(out)
    }
}

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
    fn equal_inputs_leave_the_weights() {
        let (n, rows) = (9, 5);
        let (w, x) = (noise(rows * n, 1), noise(n * 5000, 2));
        let moments = Moments::of(&x, &x, n).unwrap();
        assert!(distance(&w, &moments.refit(&w, rows).unwrap()) < 1e-6);
        let gram = moments.gram();
        assert!((gram[0] - x.chunks(n).map(|r| r[0] * r[0]).sum::<f32>() / 5000.0).abs() < 1e-4);
    }

    #[test]
    fn inputs_that_are_mixed_are_unmixed() {
        let (n, rows) = (8, 6);
        let (w, x) = (noise(rows * n, 1), noise(n * 400, 2));
        let mut mix = noise(n * n, 3);
        (0..n).for_each(|i| mix[i * n + i] += 4.0);
        let y = forward(&x, &mix, n, n);
        let fitted = Moments::of(&x, &y, n).unwrap().refit(&w, rows).unwrap();
        let wanted = forward(&x, &w, n, rows);
        let before = distance(&wanted, &forward(&y, &w, n, rows));
        let after = distance(&wanted, &forward(&y, &fitted, n, rows));
        assert!(after < 0.1 * before && before > 0.5, "{before} {after}");
    }

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

    #[test]
    fn nothing_is_learnt_from_nothing() {
        let w = noise(12, 1);
        let zeros = vec![0.0; 40];
        let moments = Moments::of(&zeros, &zeros, 4).unwrap();
        assert_eq!(moments.refit(&w, 3).unwrap(), w);
        assert!(Moments::of(&zeros, &zeros[1..], 4).is_err());
        assert!(Moments::of(&[f32::NAN; 4], &[1.0; 4], 4).is_err());
    }
}
