//! The prunings by name.

use super::error::MethodError;
use super::gram::Gram;
use super::sparsity::{Pattern, Scope};
use super::{magnitude, sparsegpt, wanda};

/// Damping of a Gram matrix whose inverse is needed, as a fraction of its mean diagonal: what
/// SparseGPT's authors use.
const DAMPING: f64 = 0.01;

/// How the weights that become zero are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruning {
    /// The smallest of the matrix: see [`magnitude`].
    Magnitude,
    /// The least |W|·‖x‖ of each row: see [`wanda`].
    Wanda,
    /// By second-order updates: see [`sparsegpt`].
    SparseGpt,
}

impl Pruning {
    /// The pruning of a name that recipes use.
    pub fn from_name(name: &str) -> Option<Pruning> {
        match name {
            "magnitude" => Some(Pruning::Magnitude),
            "wanda" => Some(Pruning::Wanda),
            "sparsegpt" => Some(Pruning::SparseGpt),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Pruning::Magnitude => "magnitude",
            Pruning::Wanda => "wanda",
            Pruning::SparseGpt => "sparsegpt",
        }
    }

    /// Whether it must know the layer's inputs.
    pub fn needs_gram(self) -> bool {
        self != Pruning::Magnitude
    }

    /// Prunes W of `rows` rows of `cols` elements. Without the Gram matrix that it needs, the
    /// weights alone decide.
    ///
    /// # Errors
    /// Those of the pruning.
    pub fn prune(
        self,
        w: &[f32],
        rows: usize,
        cols: usize,
        gram: Option<Gram<'_>>,
        pattern: Pattern,
    ) -> Result<Vec<f32>, MethodError> {
        match (self, gram) {
            (Pruning::Wanda, Some(gram)) => wanda::prune(w, rows, gram, pattern),
            (Pruning::SparseGpt, Some(gram)) => {
                sparsegpt::prune(w, rows, gram, pattern, Scope::Matrix, DAMPING)
            }
            _ => magnitude::prune(w, rows, cols, pattern, Scope::Matrix),
        }
    }
}
