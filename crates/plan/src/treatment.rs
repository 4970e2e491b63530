//! What the pipeline does with each tensor.

use dwindle_formats::container::{Form, Over, StoredTensor};

use dwindle_method::prune::Pruning;
use dwindle_method::sparsity::Pattern;

/// What becomes of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What the file will say of it.
    pub stored: StoredTensor,
    /// What is done.
    pub treatment: Treatment,
}

/// What is done with a tensor's values; the types of the results are those of the step's parts.
///
/// Other tensors are meant by their position in [`Plan::steps`](super::Plan::steps).
#[derive(Debug, Clone, PartialEq)]
pub enum Treatment {
    /// Every element in a type.
    Store,
    /// Every element in a quantized type, such that the layer's output is nearest.
    Round,
    /// Some elements become zero.
    Prune {
        /// How they are chosen.
        pruning: Pruning,
        /// How many, and in what pattern.
        pattern: Pattern,
    },
    /// Two factors, of each matrix of a stack.
    LowRank {
        /// Singular values kept.
        rank: usize,
    },
    /// Two factors of several tensors that read the same input, and share the factor that reads it.
    Joint {
        /// The tensors, in file order; the first holds the shared factor.
        members: Vec<usize>,
        /// Singular values kept.
        rank: usize,
        /// What a unit of each one's output error counts; `None` where each counts relative to its
        /// own output.
        weights: Option<Vec<f64>>,
    },
    /// A pruned matrix and two factors.
    SparseLowRank {
        /// How the pruned elements are chosen.
        pruning: Pruning,
        /// How many, and in what pattern.
        pattern: Pattern,
        /// The factors' rank.
        rank: usize,
    },
    /// A decomposition of a tensor of three ways.
    Multilinear {
        /// Which, and of what ranks.
        factors: Multilinear,
        /// What the tensor is.
        stack: Stack,
    },
    /// A tensor train of one matrix.
    Operator {
        /// How many values each row index has.
        rows: Vec<usize>,
        /// How many values each column index has.
        cols: Vec<usize>,
        /// Ranks between the cores.
        ranks: Vec<usize>,
    },
    /// Nothing: it is a slice of the stack that another tensor holds.
    Slice,
}

/// A tensor of three ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// What the first way is.
    pub over: Over,
    /// The tensors that it is made of: one, or one a layer.
    pub members: Vec<usize>,
    /// d₀ slices of d₁ rows of d₂ elements.
    pub dims: [usize; 3],
}

/// A decomposition of a tensor of three ways, with its ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Multilinear {
    /// A core and factors; a rank that equals its dimension means no factor there.
    Tucker([usize; 3]),
    /// So many outer products.
    Cp(usize),
    /// Three cores.
    TensorTrain([usize; 2]),
}

impl Step {
    /// Whether a stock file can hold it.
    pub fn is_dense(&self) -> bool {
        self.stored.form == Form::Dense
    }
}

/// A wish that could not be met.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fallback {
    /// The tensor.
    pub tensor: String,
    /// What the recipe wanted.
    pub wanted: String,
    /// What is done instead.
    pub done: String,
    /// Why.
    pub reason: String,
}
