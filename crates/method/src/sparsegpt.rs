//! Pruning by the optimal brain surgeon, one column after another: each zeroed weight's error is
//! made up for by the weights to its right, as the inverse of the damped Gram says (SparseGPT;
//! Frantar and Alistarh, 2023). Columns go in blocks, so that the update of what is far to the
//! right is one matrix product; which weights go is decided at the start of each block, by
//! w² / [H⁻¹]_jj with what earlier columns have already added.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use super::error::{MethodError, check_weights};
use super::gram::Gram;
use super::linear::{cholesky, widen_transposed};
use super::sparsity::{Pattern, Scope, least};

/// The columns of a block, as in the paper.
const BLOCK: usize = 128;

/// The damping of the paper: a hundredth of the mean of the Gram's diagonal.
pub const DAMPING: f64 = 0.01;

/// Damping is raised by this much until the Gram has a Cholesky factor.
const RAISE: f64 = 10.0;

/// Attempts to raise it before giving up.
const RAISES: usize = 6;

/// Prunes W of `rows` rows of n elements; the kept weights make up for the others.
///
/// `scope` says whether the zeros of a block are chosen in each row for itself or over all rows.
/// The zeros up to any block's end are the sparsity's share of them, so that the whole has
/// [`Pattern::zeros`] of each row, or of the matrix. Inputs that calibration never saw have the
/// damping alone, and so their weights are among the first to go. (The paper zeroes them whatever
/// the sparsity.) A Gram of zeros says nothing and counts as the identity.
///
/// # Errors
/// [`MethodError::Length`], [`MethodError::WeightsNotFinite`], [`MethodError::GramNotFinite`],
/// [`MethodError::Sparsity`], [`MethodError::Pattern`], [`MethodError::Setting`] for a damping that
/// is not positive, [`MethodError::NoConvergence`] where no damping makes the Gram invertible.
pub fn prune(
    w: &[f32],
    rows: usize,
    gram: Gram<'_>,
    pattern: Pattern,
    scope: Scope,
    damping: f64,
) -> Result<Vec<f32>, MethodError> {
    let n = gram.n;
    check_weights(w, &[rows, n])?;
    gram.check(n)?;
    pattern.check(n)?;
    if !(damping > 0.0 && damping.is_finite()) {
        return Err(MethodError::Setting {
            what: "damping",
            value: damping,
        });
    }
    // Rows of the upper factor U of H⁻¹ = UᵀU, as the columns of its transpose.
    let inverse = inverse_factor(gram, damping)?;
    // Rows of W as columns: the row that the inner loop works on is contiguous.
    let mut wt = widen_transposed(w, rows, n);
    let block = match pattern {
        Pattern::Groups { group, .. } => (BLOCK / group).max(1) * group,
        Pattern::Unstructured(_) => BLOCK,
    };
    for Range { start, end } in blocks(n, block) {
        prune_block(&mut wt, &inverse, start, end, pattern, scope);
    }
    Ok((0..rows)
        .flat_map(|i| wt.col_as_slice(i).iter().map(|v| *v as f32))
        .collect())
}

/// Columns in blocks. What is left behind the last whole one goes with it if it is less than half of one: its
/// zeros are a share of its own columns, and nothing behind them makes up for them.
fn blocks(n: usize, block: usize) -> impl Iterator<Item = Range<usize>> {
    let count = (n / block + usize::from(2 * (n % block) >= block)).max(1);
    (0..count).map(move |i| i * block..if i + 1 == count { n } else { (i + 1) * block })
}

/// Prunes the columns of one block in every row and carries the errors to the columns beyond.
fn prune_block(
    wt: &mut Mat<f64>,
    inverse: &Mat<f64>,
    start: usize,
    end: usize,
    pattern: Pattern,
    scope: Scope,
) {
    let (n, rows, width) = (wt.nrows(), wt.ncols(), end - start);
    let score = |v: f64, j: usize| (v / inverse[(j, j)]).powi(2);
    let mut gone = vec![false; rows * width];
    let mut order = Vec::new();
    let mut scores = Vec::new();
    if let Pattern::Unstructured(_) = pattern {
        for i in 0..rows {
            let row = &wt.col_as_slice(i)[start..end];
            scores.extend((start..end).zip(row).map(|(j, v)| score(*v, j)));
        }
        gone = least_of_block(&scores, rows, start..end, pattern, scope);
    }
    let mut errors = Mat::<f64>::zeros(width, rows);
    for i in 0..rows {
        let row = &mut wt.col_as_slice_mut(i)[start..end];
        let gone = &mut gone[i * width..(i + 1) * width];
        let errors = errors.col_as_slice_mut(i);
        for k in 0..width {
            if let Pattern::Groups { keep, group } = pattern
                && k % group == 0
            {
                scores.clear();
                let columns = (start + k..).zip(&row[k..k + group]);
                scores.extend(columns.map(|(j, v)| score(*v, j)));
                let zeros = least(&scores, group - keep, &mut order);
                zeros.iter().for_each(|&z| gone[k + z] = true);
            }
            if !gone[k] {
                continue;
            }
            let factor = &inverse.col_as_slice(start + k)[start + k..end];
            let error = row[k] / factor[0];
            for (v, u) in row[k..].iter_mut().zip(factor) {
                *v -= error * u;
            }
            row[k] = 0.0;
            errors[k] = error;
        }
    }
    if end < n {
        matmul(
            wt.as_mut().subrows_mut(end, n - end),
            Accum::Add,
            inverse.as_ref().submatrix(end, start, n - end, width),
            errors.as_ref(),
            -1.0,
            Par::Seq,
        );
    }
}

/// Which elements of a block of columns go, by their scores, a row of W after another.
fn least_of_block(
    scores: &[f64],
    rows: usize,
    columns: Range<usize>,
    pattern: Pattern,
    scope: Scope,
) -> Vec<bool> {
    let width = columns.len();
    let zeros =
        |scale: usize| pattern.zeros(columns.end * scale) - pattern.zeros(columns.start * scale);
    let (len, zeros) = match scope {
        Scope::Row => (width, zeros(1)),
        Scope::Matrix => (rows * width, zeros(rows)),
    };
    let mut order = Vec::new();
    let mut gone = vec![false; rows * width];
    for (gone, scores) in gone.chunks_mut(len.max(1)).zip(scores.chunks(len.max(1))) {
        least(scores, zeros, &mut order)
            .iter()
            .for_each(|&k| gone[k] = true);
    }
    gone
}

/// The transpose of the upper triangular U with UᵀU = (G + damping)⁻¹, lower triangular.
///
/// With P the reversal of the order, P·G·P = C·Cᵀ gives G = (P·C·P)·(P·C·P)ᵀ of upper triangular
/// factors, whose inverse is the factor wanted: one Cholesky and one triangular inverse.
fn inverse_factor(gram: Gram<'_>, damping: f64) -> Result<Mat<f64>, MethodError> {
    let n = gram.n;
    let mean = gram.mean_square();
    let mut added = damping * if mean > 0.0 { mean } else { 1.0 };
    for _ in 0..RAISES {
        let reversed = Mat::from_fn(n, n, |i, j| {
            let (i, j) = (n - 1 - i, n - 1 - j);
            let g = f64::from(gram.values[i * n + j]);
            g + if i == j { added } else { 0.0 }
        });
        if let Some(c) = cholesky(reversed) {
            let mut inverse = Mat::<f64>::zeros(n, n);
            faer::linalg::triangular_inverse::invert_lower_triangular(
                inverse.as_mut(),
                c.as_ref(),
                Par::Seq,
            );
            // U = (P·C·P)⁻¹ is upper triangular; its transpose has its rows as columns.
            let upper = inverse.as_ref().reverse_rows_and_cols();
            return Ok(upper.transpose().to_owned());
        }
        added *= RAISE;
    }
    Err(MethodError::NoConvergence)
}

#[cfg(test)]
mod tests {
    use super::super::linear::product;
    use super::super::sample::{correlated, noise};
    use super::super::wanda;
    use super::*;
    use proptest::prelude::*;

    fn zeros(w: &[f32]) -> usize {
        w.iter().filter(|v| **v == 0.0).count()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_sparsity_is_exact_and_the_output_nearer_than_wandas(
            rows in 4usize..12, groups in 30usize..40, sparsity in 0.2f64..0.8, seed in any::<u64>(),
        ) {
            let n = 4 * groups;
            let w = noise(rows * n, seed);
            let g = correlated(n, 2 * n, seed);
            let gram = Gram::new(&g, n).unwrap();
            for pattern in [Pattern::Unstructured(sparsity), Pattern::Groups { keep: 2, group: 4 }] {
                let plain = wanda::prune(&w, rows, gram, pattern).unwrap();
                for scope in [Scope::Row, Scope::Matrix] {
                    let pruned = prune(&w, rows, gram, pattern, scope, DAMPING).unwrap();
                    prop_assert_eq!(zeros(&pruned), match scope {
                        Scope::Row => rows * pattern.zeros(n),
                        Scope::Matrix => pattern.zeros(rows * n),
                    });
                    if let Pattern::Groups { .. } = pattern {
                        prop_assert!(pruned.chunks(4).all(|group| zeros(group) == 2));
                    } else if scope == Scope::Row {
                        prop_assert!(pruned.chunks(n).all(|row| zeros(row) == pattern.zeros(n)));
                    }
                    let error = gram.output_error(&w, &pruned, rows);
                    prop_assert!(error <= gram.output_error(&w, &plain, rows));
                }
            }
        }
    }

    #[test]
    fn a_short_rest_goes_with_the_last_block() {
        let cut = |n| blocks(n, 128).collect::<Vec<_>>();
        let whole = |n| cut(n) == vec![Range { start: 0, end: n }];
        assert!([1, 100, 128, 132, 191].into_iter().all(whole));
        assert_eq!(cut(192), [0..128, 128..192]);
        assert_eq!(cut(300), [0..128, 128..300]);
        assert_eq!(cut(0).len(), 1);
    }

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let n = 20;
        let g = correlated(n, 3 * n, 5);
        let gram = Gram::new(&g, n).unwrap();
        let factor = inverse_factor(gram, DAMPING).unwrap();
        let mut damped = widen_transposed(&g, n, n);
        (0..n).for_each(|j| damped[(j, j)] += DAMPING * gram.mean_square());
        let inverse = product(factor.as_ref(), factor.transpose());
        let one = product(inverse.as_ref(), damped.as_ref());
        for i in 0..n {
            for j in 0..n {
                assert_eq!(factor[(i, j)] == 0.0, i < j);
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((one[(i, j)] - expected).abs() < 1e-8);
            }
        }
    }

    #[test]
    fn inputs_never_seen_and_grams_of_zeros_and_few_tokens() {
        let (m, n) = (3, 8);
        let w = noise(m * n, 1);
        let half = Pattern::Unstructured(0.5);
        for tokens in [0, 1, 2] {
            let mut g = if tokens == 0 {
                vec![0f32; n * n]
            } else {
                correlated(n, tokens, 2)
            };
            for j in 0..n {
                g[5 * n + j] = 0.0;
                g[j * n + 5] = 0.0;
            }
            let gram = Gram::new(&g, n).unwrap();
            let pruned = prune(&w, m, gram, half, Scope::Row, DAMPING).unwrap();
            assert!(pruned.iter().all(|v| v.is_finite()));
            assert!(pruned.chunks(n).all(|row| zeros(row) == 4));
            assert!(tokens == 0 || pruned.chunks(n).all(|row| row[5] == 0.0));
        }
        let zero = prune(
            &vec![0.0; m * n],
            m,
            Gram {
                values: &vec![1.0; n * n],
                n,
            },
            half,
            Scope::Row,
            DAMPING,
        );
        assert_eq!(zero.unwrap(), vec![0.0; m * n]);
        let gram = Gram {
            values: &[f32::NAN; 4],
            n: 2,
        };
        assert_eq!(
            prune(&[1.0; 2], 1, gram, half, Scope::Row, DAMPING).unwrap_err(),
            MethodError::GramNotFinite
        );
    }
}
