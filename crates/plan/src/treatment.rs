//! What the pipeline does with each tensor.

use std::sync::Arc;

use dwindle_formats::container::{Form, Over, StoredTensor};

use super::methods::Make;

/// What becomes of one tensor.
#[derive(Debug, Clone)]
pub struct Step {
    /// What the file will say of it.
    pub stored: StoredTensor,
    /// What is done.
    pub treatment: Treatment,
}

/// What is done with a tensor's values; the types of the results are those of the step's parts.
///
/// Other tensors are meant by their position in [`Plan::steps`](super::Plan::steps).
#[derive(Debug, Clone)]
pub enum Treatment {
    /// Every element in a type.
    Store,
    /// Every element in a quantized type, such that the layer's output is nearest.
    Round,
    /// A method makes the parts.
    Made {
        /// What of.
        of: Operands,
        /// The method, with its parameters.
        by: Arc<dyn Make>,
    },
    /// Nothing: it is a slice of the stack that another tensor holds.
    Slice,
}

/// What a method makes the parts of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operands {
    /// This tensor's matrices, one or a stack of them: each by itself.
    Matrices,
    /// These tensors as one of three ways; the first one's step holds the parts.
    Stack {
        /// What the first way is.
        over: Over,
        /// One tensor, or one a layer.
        members: Vec<usize>,
    },
    /// These tensors, which read the same input, one after another; the parts are shared out among
    /// their steps.
    Joint(Vec<usize>),
}

impl Treatment {
    /// A method's.
    pub fn made(of: Operands, by: impl Make + 'static) -> Treatment {
        Treatment::Made {
            of,
            by: Arc::new(by),
        }
    }

    /// The tensors that are made together and share parts, if there may be several.
    pub fn together(&self) -> Option<&[usize]> {
        match self {
            Treatment::Made {
                of: Operands::Stack { members, .. } | Operands::Joint(members),
                ..
            } => Some(members),
            _ => None,
        }
    }

    /// The tensors among which the parts are shared out.
    pub fn joint(&self) -> Option<&[usize]> {
        match self {
            Treatment::Made {
                of: Operands::Joint(members),
                ..
            } => Some(members),
            _ => None,
        }
    }

    /// The tensors whose parts this one's step holds.
    pub fn stack(&self) -> Option<&[usize]> {
        self.together().filter(|_| self.joint().is_none())
    }

    /// Whether the values only change their type, each by itself.
    pub fn is_store(&self) -> bool {
        matches!(self, Treatment::Store)
    }

    /// Whether each row is made by itself.
    pub fn is_by_rows(&self) -> bool {
        matches!(self, Treatment::Store | Treatment::Round)
    }
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
