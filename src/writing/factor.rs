//! The parts of factored and pruned tensors, computed from their values.

use crate::method::error::MethodError;
use crate::method::low_rank::decompose;
use crate::method::prune::Pruning;
use crate::method::sparse_low_rank;
use crate::method::sparsity::Pattern;
use crate::method::svd::Factors;
use crate::method::tensor::{Ranks, transpose};
use crate::method::tucker::Ways;
use crate::method::whitened::{DAMPING, Whitening};
use crate::method::{cp, tensor_train, tucker};
use crate::plan::{Multilinear, Operand, TransformError};

/// Sweeps of alternating methods, at most; most end earlier, when nothing is gained any more.
const SWEEPS: usize = 30;

/// Sweeps of sparse plus low rank: nearly all of the gain is in the first ones.
const SPARSE_SWEEPS: usize = 6;

/// What SparseGPT's authors add to the diagonal, as a fraction of its mean.
const SPARSEGPT_DAMPING: f64 = 0.01;

/// Two factors of a matrix of some rank, of which a side below it has fewer.
pub(super) fn low_rank(operand: &Operand<'_>, rank: usize) -> Result<Factors, TransformError> {
    let (w, cols) = (&operand.w, operand.cols);
    let rows = w.len() / cols;
    let d = decompose(w, rows, cols, operand.gram())?;
    Ok(d.factors(w, rows, cols, rank)?)
}

/// A pruned matrix, and the factors of what it lacks: S, A, B.
pub(super) fn sparse_low_rank(
    operand: &Operand<'_>,
    pruning: Pruning,
    pattern: Pattern,
    rank: usize,
) -> Result<Vec<Vec<f32>>, TransformError> {
    let gram = operand.gram().ok_or(MethodError::GramWidth {
        expected: operand.cols,
        found: 0,
    })?;
    let settings = sparse_low_rank::Settings {
        pattern,
        pruning: match pruning {
            Pruning::SparseGpt => sparse_low_rank::Pruning::SparseGpt(SPARSEGPT_DAMPING),
            _ => sparse_low_rank::Pruning::Wanda,
        },
        rank,
        sweeps: SPARSE_SWEEPS,
        damping: DAMPING,
    };
    let rows = operand.w.len() / operand.cols;
    let d = sparse_low_rank::decompose(&operand.w, rows, gram, &settings)?;
    Ok(vec![d.sparse, d.factors.a, d.factors.b])
}

/// The parts of a tensor of three ways, in the order of its form.
pub(super) fn multilinear(
    operand: &Operand<'_>,
    dims: [usize; 3],
    factors: &Multilinear,
) -> Result<Vec<Vec<f32>>, TransformError> {
    let whitening = match operand.gram() {
        Some(gram) => Some(Whitening::new(gram, DAMPING)?),
        None => None,
    };
    let (w, whitening) = (&operand.w, whitening.as_ref());
    match factors {
        Multilinear::Tucker(ranks) => {
            let ways = if ranks[0] == dims[0] {
                Ways::Two
            } else {
                Ways::Three
            };
            let fixed = Ranks::Fixed(*ranks);
            let t = tucker::decompose(w, dims, ways, fixed, whitening, SWEEPS)?;
            let [s, b, a] = t.factors;
            let a = a.map(|a| transpose(&a, dims[2], ranks[2]));
            Ok([a, Some(t.core), b, s].into_iter().flatten().collect())
        }
        Multilinear::Cp(rank) => {
            let settings = cp::Settings::default();
            let c = cp::decompose(w, dims, Ranks::Fixed(*rank), whitening, &settings)?;
            let [s, b, a] = c.factors;
            Ok(vec![transpose(&a, dims[2], *rank), b, s])
        }
        Multilinear::TensorTrain(ranks) => {
            let fixed = Ranks::Fixed(&ranks[..]);
            Ok(tensor_train::decompose(w, &dims, fixed, whitening)?.cores)
        }
    }
}

/// The cores of one matrix as an operator.
pub(super) fn operator(
    operand: &Operand<'_>,
    rows: &[usize],
    cols: &[usize],
    ranks: &[usize],
) -> Result<Vec<Vec<f32>>, TransformError> {
    let fixed = Ranks::Fixed(ranks);
    Ok(
        tensor_train::decompose_matrix(&operand.w, rows, cols, fixed)?
            .train
            .cores,
    )
}
