//! Two factors of a matrix: whitened where the layer's input is known, plain where it is not.

use super::error::MethodError;
use super::gram::Gram;
use super::svd::{self, Factors, SvdError};
use super::whitened::{DAMPING, Whitened, Whitening};

/// Why a matrix has no factors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LowRankError {
    /// The plain decomposition failed.
    #[error(transparent)]
    Svd(#[from] SvdError),
    /// The whitened decomposition failed.
    #[error(transparent)]
    Method(#[from] MethodError),
}

/// A decomposed matrix, from which factors of any rank follow.
pub enum Decomposition<'a> {
    /// By the weights alone.
    Plain(svd::Decomposition),
    /// By the layer's output.
    Whitened(Whitening<'a>, Whitened),
}

/// Decomposes W of `rows` rows of `cols` elements.
///
/// # Errors
/// Elements that are not finite, a Gram matrix of another width, no convergence.
pub fn decompose<'a>(
    w: &[f32],
    rows: usize,
    cols: usize,
    gram: Option<Gram<'a>>,
) -> Result<Decomposition<'a>, LowRankError> {
    let Some(gram) = gram else {
        return Ok(Decomposition::Plain(svd::decompose(w, rows, cols)?));
    };
    let whitening = Whitening::new(gram, DAMPING)?;
    let whitened = whitening.decompose(w, rows)?;
    Ok(Decomposition::Whitened(whitening, whitened))
}

impl Decomposition<'_> {
    /// The smallest rank that holds a fraction of the energy: of the weights, or of the output.
    pub fn rank_of_energy(&self, fraction: f64) -> u64 {
        match self {
            Decomposition::Plain(d) => d.rank_of_energy(fraction),
            Decomposition::Whitened(_, d) => d.rank_of_energy(fraction) as u64,
        }
    }

    /// The energy that each rank adds, descending: of the weights, or of the output.
    pub fn energies(&self) -> Vec<f64> {
        match self {
            Decomposition::Plain(d) => d.singular_values.iter().map(|s| s * s).collect(),
            Decomposition::Whitened(_, d) => d.spectrum().to_vec(),
        }
    }

    /// Factors of a rank up to the smaller side, for the W that was decomposed.
    ///
    /// # Errors
    /// A rank beyond the smaller side; a Gram matrix without a root.
    pub fn factors(
        &self,
        w: &[f32],
        rows: usize,
        cols: usize,
        rank: usize,
    ) -> Result<Factors, LowRankError> {
        match self {
            Decomposition::Plain(d) => Ok(d.factors(w, rows, cols, rank)),
            Decomposition::Whitened(whitening, d) => Ok(whitening.factors(d, w, rank)?),
        }
    }
}
