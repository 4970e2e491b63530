//! Which weights a pruning zeroes: how many, in which groups, and what decides between equals.

use super::error::MethodError;

/// How the zeros are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pattern {
    /// A fraction of zeros, anywhere.
    Unstructured(f64),
    /// `keep` of every `group` neighbours in a row stay, as in 2:4.
    Groups {
        /// Weights kept in each group.
        keep: usize,
        /// Weights in a group.
        group: usize,
    },
}

/// Among which weights the least important are sought when the pattern is unstructured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The whole matrix, so that rows differ in their sparsity.
    Matrix,
    /// Each row for itself.
    Row,
}

impl Pattern {
    /// Holds the pattern against rows of a length.
    pub(super) fn check(self, cols: usize) -> Result<(), MethodError> {
        match self {
            Self::Unstructured(s) if !(0.0..=1.0).contains(&s) => Err(MethodError::Sparsity(s)),
            Self::Groups { keep, group }
                if group == 0 || keep > group || !cols.is_multiple_of(group) =>
            {
                Err(MethodError::Pattern { keep, group, cols })
            }
            _ => Ok(()),
        }
    }

    /// The zeros among `count` weights: the sparsity's share to the nearest, halves up.
    pub fn zeros(self, count: usize) -> usize {
        match self {
            Self::Unstructured(s) => ((s * count as f64).round() as usize).min(count),
            Self::Groups { keep, group } => count / group * (group - keep),
        }
    }
}

/// Zeroes the weights of least score: [`Pattern::zeros`] of each scope or, in groups, `group − keep`
/// of each. Of equal scores the one further to the front goes. The others stay as they are.
pub(super) fn zero_least(
    w: &mut [f32],
    scores: &[f32],
    cols: usize,
    pattern: Pattern,
    scope: Scope,
) {
    let (len, zeros) = match (pattern, scope) {
        (Pattern::Groups { keep, group }, _) => (group, group - keep),
        (_, Scope::Row) => (cols, pattern.zeros(cols)),
        (_, Scope::Matrix) => (w.len(), pattern.zeros(w.len())),
    };
    if len == 0 {
        return;
    }
    let mut order = Vec::with_capacity(len);
    for (w, scores) in w.chunks_exact_mut(len).zip(scores.chunks_exact(len)) {
        for &i in least(scores, zeros, &mut order) {
            w[i] = 0.0;
        }
    }
}

/// The indices of the `count` least scores, in no order; of equal ones the first.
pub(super) fn least<'a, T: Copy + PartialOrd>(
    scores: &[T],
    count: usize,
    order: &'a mut Vec<usize>,
) -> &'a [usize] {
    order.clear();
    order.extend(0..scores.len());
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count - 1, |&a, &b| {
            let by_score = scores[a].partial_cmp(&scores[b]);
            by_score
                .unwrap_or(std::cmp::Ordering::Equal)
                .then(a.cmp(&b))
        });
    }
    &order[..count.min(scores.len())]
}
