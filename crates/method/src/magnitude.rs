//! Pruning by magnitude: the weights of least |w| become zeros (Han and others, 2015). It knows no
//! inputs, and is here as the measure that the others must beat.

use super::error::{MethodError, check_weights};
use super::sparsity::{Pattern, Scope, zero_least};

/// Prunes W of `rows` rows of `cols` elements; kept weights keep their bits.
///
/// # Errors
/// [`MethodError::Length`], [`MethodError::WeightsNotFinite`], [`MethodError::Sparsity`],
/// [`MethodError::Pattern`].
pub fn prune(
    w: &[f32],
    rows: usize,
    cols: usize,
    pattern: Pattern,
    scope: Scope,
) -> Result<Vec<f32>, MethodError> {
    check_weights(w, &[rows, cols])?;
    pattern.check(cols)?;
    let scores: Vec<f32> = w.iter().map(|v| v.abs()).collect();
    let mut out = w.to_vec();
    zero_least(&mut out, &scores, cols, pattern, scope);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::sample::noise;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_least_go_and_the_others_stay(
            rows in 1usize..12, cols in 1usize..12, sparsity in 0.0f64..=1.0, seed in any::<u64>(),
        ) {
            let w = noise(rows * cols, seed);
            let pattern = Pattern::Unstructured(sparsity);
            let count = |w: &[f32]| w.iter().filter(|v| **v == 0.0).count();
            let whole = prune(&w, rows, cols, pattern, Scope::Matrix).unwrap();
            prop_assert_eq!(count(&whole), pattern.zeros(rows * cols));
            let largest_gone = w.iter().zip(&whole).filter(|(_, p)| **p == 0.0);
            let largest_gone = largest_gone.map(|(w, _)| w.abs()).fold(0.0, f32::max);
            for (w, p) in w.iter().zip(&whole).filter(|(_, p)| **p != 0.0) {
                prop_assert!(w == p && w.abs() >= largest_gone);
            }
            let by_row = prune(&w, rows, cols, pattern, Scope::Row).unwrap();
            for row in by_row.chunks(cols) {
                prop_assert_eq!(count(row), pattern.zeros(cols));
            }
        }
    }

    #[test]
    fn groups_and_ties() {
        let w = [1.0, -1.0, 1.0, 1.0, 0.5, -4.0, 3.0, 2.0];
        let two_of_four = Pattern::Groups { keep: 2, group: 4 };
        assert_eq!(
            prune(&w, 1, 8, two_of_four, Scope::Row).unwrap(),
            [0.0, 0.0, 1.0, 1.0, 0.0, -4.0, 3.0, 0.0]
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let prune = |w: &[f32], pattern| prune(w, 1, 6, pattern, Scope::Row).unwrap_err();
        let w = [1.0; 6];
        let nan = Pattern::Unstructured(f64::NAN);
        assert!(matches!(prune(&w, nan), MethodError::Sparsity(_)));
        for (keep, group) in [(2, 4), (4, 3), (0, 0)] {
            assert_eq!(
                prune(&w, Pattern::Groups { keep, group }),
                MethodError::Pattern {
                    keep,
                    group,
                    cols: 6
                }
            );
        }
        assert_eq!(
            prune(&[f32::NAN; 6], Pattern::Unstructured(0.5)),
            MethodError::WeightsNotFinite
        );
    }
}
