//! Pruning by weights and activations: in each output row the weights of least |w_ij|·‖x_j‖ become
//! zeros (Wanda; Sun, Liu, Bair and Kolter, 2023). It needs the diagonal of the Gram only, and
//! moves no weight that it keeps.

use super::error::{MethodError, check_weights};
use super::gram::Gram;
use super::sparsity::{Pattern, Scope, zero_least};

/// Prunes W of `rows` rows of n elements; kept weights keep their bits.
///
/// # Errors
/// [`MethodError::Length`], [`MethodError::WeightsNotFinite`], [`MethodError::GramNotFinite`],
/// [`MethodError::Sparsity`], [`MethodError::Pattern`].
pub fn prune(
    w: &[f32],
    rows: usize,
    gram: Gram<'_>,
    pattern: Pattern,
) -> Result<Vec<f32>, MethodError> {
    gram.check(gram.n)?;
    prune_with(w, rows, &gram.diagonal().collect::<Vec<_>>(), pattern)
}

/// The same with the mean squares of the inputs alone, as an importance matrix has them.
///
/// # Errors
/// As [`prune`].
pub fn prune_with(
    w: &[f32],
    rows: usize,
    mean_squares: &[f64],
    pattern: Pattern,
) -> Result<Vec<f32>, MethodError> {
    let cols = mean_squares.len();
    check_weights(w, &[rows, cols])?;
    pattern.check(cols)?;
    if mean_squares.iter().any(|v| !(*v >= 0.0 && v.is_finite())) {
        return Err(MethodError::GramNotFinite);
    }
    let norms: Vec<f32> = mean_squares.iter().map(|v| v.sqrt() as f32).collect();
    let scores: Vec<f32> = w
        .iter()
        .zip(norms.iter().cycle())
        .map(|(v, norm)| v.abs() * norm)
        .collect();
    let mut out = w.to_vec();
    zero_least(&mut out, &scores, cols, pattern, Scope::Row);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::magnitude;
    use super::super::sample::{correlated, noise};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_row_has_its_zeros_and_kept_weights_are_not_moved(
            rows in 1usize..12, groups in 1usize..5, sparsity in 0.0f64..=1.0, seed in any::<u64>(),
        ) {
            let cols = 4 * groups;
            let w = noise(rows * cols, seed);
            let g = correlated(cols, 2 * cols, seed);
            let gram = Gram::new(&g, cols).unwrap();
            for (pattern, len) in [
                (Pattern::Unstructured(sparsity), cols),
                (Pattern::Groups { keep: 2, group: 4 }, 4),
            ] {
                let pruned = prune(&w, rows, gram, pattern).unwrap();
                for row in pruned.chunks(len) {
                    let zeros = row.iter().filter(|v| **v == 0.0).count();
                    prop_assert_eq!(zeros, pattern.zeros(len));
                }
                prop_assert!(w.iter().zip(&pruned).all(|(w, p)| *p == 0.0 || w == p));
            }
        }
    }

    #[test]
    fn inputs_of_equal_scale_make_it_magnitude() {
        let (m, n) = (7, 12);
        let w = noise(m * n, 3);
        let mut g = vec![0f32; n * n];
        (0..n).for_each(|j| g[j * (n + 1)] = 1.0);
        let gram = Gram::new(&g, n).unwrap();
        for pattern in [
            Pattern::Unstructured(0.4),
            Pattern::Groups { keep: 1, group: 3 },
        ] {
            assert_eq!(
                prune(&w, m, gram, pattern).unwrap(),
                magnitude::prune(&w, m, n, pattern, Scope::Row).unwrap()
            );
        }
    }

    #[test]
    fn loud_inputs_are_kept() {
        let pruned = prune_with(&[3.0, 1.0], 1, &[1.0, 100.0], Pattern::Unstructured(0.5));
        assert_eq!(pruned.unwrap(), [0.0, 1.0]);
        assert_eq!(
            prune_with(&[3.0], 1, &[f64::NAN], Pattern::Unstructured(0.5)).unwrap_err(),
            MethodError::GramNotFinite
        );
    }
}
