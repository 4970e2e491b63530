//! A model's weights as a device needs them: which of them are not matrices in memory,
//! and the chains of smaller operands that stand for them.

use std::collections::HashMap;

use dwindle_formats::gguf::TensorType;

use crate::llama::error::BoxError;

/// A matrix, or a stack of matrices, in memory. Weights may share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operand {
    /// For messages and traces.
    pub name: String,
    /// Its type.
    pub ty: TensorType,
    /// Its shape, the row length first: one to three dimensions.
    pub shape: Vec<u64>,
}

/// One step from a layer's input to its output. The state of a chain begins as the input, of n
/// elements for each token (and for each expert that the token has chosen).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The product with an operand of shape `[k, m]` or, one for each expert, `[k, m, e]`. A state
    /// of more than k elements is taken as runs of k, each of which gives m.
    Matrix(usize),
    /// The elementwise product with an operand of shape `[k]` or, one for each expert, `[k, e]`.
    Scale(usize),
    /// The elementwise products with each column of an operand of shape `[k, s]`, one after
    /// another: a state of k·s elements.
    Spread(usize),
    /// The state as a matrix of rows of this many elements, transposed.
    Turn(u64),
}

/// The operands that replace a weight.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contraction {
    /// As a factor of a product: chains from the input to the output, whose results are added.
    /// Empty where the weight is not used like this.
    pub branches: Vec<Vec<Link>>,
    /// As a table whose rows are looked up: the operand whose rows are looked up instead, `[r, m]`,
    /// and the one that their r elements are multiplied with, `[r, n]`.
    pub rows: Option<[usize; 2]>,
}

/// The weights of a model that a device computes with operands of its own.
#[derive(Debug, Clone, Default)]
pub struct Weights {
    /// What is in memory.
    pub operands: Vec<Operand>,
    /// By the name of the weight.
    pub contractions: HashMap<String, Contraction>,
}

/// Makes the bytes of an operand, by its index.
pub type Fetch = Box<dyn Fn(usize) -> Result<Vec<u8>, BoxError> + Send>;

impl Contraction {
    /// The operands, each once, in order of their use.
    pub fn operands(&self) -> Vec<usize> {
        let mut out = Vec::new();
        let links = self
            .branches
            .iter()
            .flatten()
            .filter_map(|link| match link {
                Link::Matrix(operand) | Link::Scale(operand) | Link::Spread(operand) => {
                    Some(*operand)
                }
                Link::Turn(_) => None,
            });
        for operand in links.chain(self.rows.into_iter().flatten()) {
            if !out.contains(&operand) {
                out.push(operand);
            }
        }
        out
    }
}

impl Weights {
    /// Bytes of the operands that stand for a weight.
    pub fn bytes_of(&self, weight: &str) -> Option<u64> {
        let operands = self.contractions.get(weight)?.operands().into_iter();
        let operands = operands.filter_map(|i| self.operands.get(i));
        Some(operands.filter_map(|o| o.ty.bytes(&o.shape)).sum())
    }

    /// Bytes of all operands.
    pub fn bytes(&self) -> u64 {
        let bytes = self.operands.iter().filter_map(|o| o.ty.bytes(&o.shape));
        bytes.sum()
    }
}
