//! What can be wrong with the matrices and settings that a method is given.

/// A method could not be applied.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum MethodError {
    /// NaN or infinite weights.
    #[error("the weights have elements that are not finite")]
    WeightsNotFinite,
    /// NaN or infinite elements in the Gram matrix, or a negative one on its diagonal.
    #[error("the Gram matrix has elements that are not finite, or a negative diagonal")]
    GramNotFinite,
    /// The Gram matrix was measured for inputs of another width.
    #[error("the Gram matrix is {found} wide and the weights have {expected} inputs")]
    GramWidth {
        /// Inputs of the weights.
        expected: usize,
        /// Side of the Gram matrix.
        found: usize,
    },
    /// A slice's length is not what the shape says.
    #[error("{found} elements for a shape of {expected}")]
    Length {
        /// Elements by the shape.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// An eigenvalue iteration did not end.
    #[error("an eigenvalue iteration did not converge")]
    NoConvergence,
    /// A rank of zero, or above what the shape has.
    #[error("rank {rank} is not between 1 and {limit}")]
    Rank {
        /// The rank wanted.
        rank: usize,
        /// The highest possible.
        limit: usize,
    },
    /// A sparsity that is no fraction.
    #[error("sparsity {0} is not between 0 and 1")]
    Sparsity(f64),
    /// An N:M pattern that the rows cannot have.
    #[error("a pattern of {keep} kept in {group} does not fit rows of {cols}")]
    Pattern {
        /// Weights kept in each group.
        keep: usize,
        /// Weights in a group.
        group: usize,
        /// Weights in a row.
        cols: usize,
    },
    /// A budget below what the smallest choices cost.
    #[error("a budget of {budget} is less than the {needed} of the smallest choices")]
    Budget {
        /// What was allowed.
        budget: u64,
        /// What the cheapest choice for each matrix costs.
        needed: u64,
    },
    /// A setting outside its range.
    #[error("{what} is out of range: {value}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// Its value.
        value: f64,
    },
}

/// Holds a slice against the shape it should have and its elements to be finite.
pub(super) fn check_weights(w: &[f32], shape: &[usize]) -> Result<(), MethodError> {
    let expected = shape
        .iter()
        .try_fold(1usize, |product, d| product.checked_mul(*d))
        .unwrap_or(usize::MAX);
    if w.len() != expected {
        return Err(MethodError::Length {
            expected,
            found: w.len(),
        });
    }
    if w.iter().any(|v| !v.is_finite()) {
        return Err(MethodError::WeightsNotFinite);
    }
    Ok(())
}

/// Holds a rank between one and a limit.
pub(super) fn check_rank(rank: usize, limit: usize) -> Result<(), MethodError> {
    if rank == 0 || rank > limit {
        return Err(MethodError::Rank { rank, limit });
    }
    Ok(())
}
