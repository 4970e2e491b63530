//! The methods that a rule may name: one file each, with its keys, what becomes of a tensor by it, and
//! how the parts are made. [`METHODS`] lists them; nothing else knows them by name.

mod keys;
mod prune;
mod quantize;
mod registered;
mod sparse_low_rank;
mod svd;
mod three_ways;

use std::fmt;

use super::operand::{Operand, TransformError};
use super::resolve::PlanError;
use super::resolver::{Resolved, Resolver};
use registered::{Registered, method};

pub(super) use quantize::Quantize;
pub(super) use registered::{all_keys, find};

/// Every method, by the name that recipes use.
pub(super) const METHODS: &[Registered] = &[
    method::<quantize::Keys>("quantize"),
    method::<svd::Keys>("svd"),
    method::<sparse_low_rank::Keys>("sparse-low-rank"),
    method::<three_ways::tucker::Keys>("tucker"),
    method::<three_ways::cp::Keys>("cp"),
    method::<three_ways::tensor_train::Keys>("tensor-train"),
    method::<prune::Keys>("magnitude"),
    method::<prune::Keys>("wanda"),
    method::<prune::Keys>("sparsegpt"),
];

/// What a rule wants done: a method with its parameters.
pub(crate) trait Method: fmt::Debug + Send + Sync {
    /// What becomes of one tensor.
    fn resolve(&self, resolver: &Resolver<'_>, index: usize) -> Result<Resolved, PlanError>;

    /// What becomes of the tensors of a rule that are treated together. The others go through
    /// [`Self::resolve`].
    fn resolve_together(
        &self,
        _resolver: &Resolver<'_>,
        _members: &[usize],
    ) -> Result<Vec<(usize, Resolved)>, PlanError> {
        Ok(Vec::new())
    }

    /// Whether it can follow a change of the model's structure: it needs nothing that was measured of
    /// the whole model.
    fn follows_structure(&self) -> bool {
        false
    }
}

/// How a method makes the parts of tensors.
///
/// The `Debug` text is part of a plan's fingerprint: it must show everything that decides the parts, as
/// the derived one does.
pub trait Make: fmt::Debug + Send + Sync {
    /// The values of the parts, in the order of the plan. Gets what the step's
    /// [`Operands`](super::Operands) ask for.
    ///
    /// # Errors
    /// Those of the method.
    fn parts(&self, operands: &[Operand<'_>]) -> Result<Vec<Vec<f32>>, TransformError>;

    /// Whether the parts are other ones where the input of the layer was measured.
    fn uses_input(&self) -> bool {
        false
    }
}
