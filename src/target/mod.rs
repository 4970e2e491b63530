//! Chooses a type per tensor for a size or a quality.
//!
//! One walk over the model finds what each type does to a tensor's output, by a sample of its rows
//! (`candidates.rs`), and what an error of that output costs, as the KL divergence of a running model
//! in which few blocks are rounded ([`survey`](fn@survey)). Divergences of small errors add up. So the best file of a size is a choice of one type for each
//! tensor with the least sum, and is found along the convex hulls ([`Costs::allocate`]). With more
//! effort, files are written and measured to refine that choice ([`Refinement`]).

mod allocation;
mod candidates;
mod ladder;
mod probe;
mod refinement;
mod search;
mod survey;

pub use allocation::{Assignment, Costs, bits_of};
pub use candidates::{Candidate, TYPES, TensorCandidates, types_for};
pub use ladder::{Rung, rung, rungs, smallest};
pub use probe::fingerprint;
pub use refinement::Refinement;
pub use search::{Chosen, Search, Task, of_bits, of_size, planned, refuse_too_small};
pub use survey::{Part, Survey, Surveyed, Task as SurveyTask, activations, survey};

use crate::blockwise::WalkError;
use crate::eval::EvalError;
use crate::llama::model::LlamaError;
use crate::method::error::MethodError;
use crate::plan::{PlanError, TensorError};

/// Why no types could be chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum BudgetError {
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(
        "the smallest possible file has at least {smallest} bytes, more than the requested {wanted}"
    )]
    TooSmall { wanted: u64, smallest: u64 },
    #[error("the largest possible file diverges by {least:.6}, more than the requested {wanted}")]
    Divergence { wanted: f64, least: f64 },
    #[error(
        "all tensors take at least {smallest:.3} bits per weight, more than the requested {wanted}"
    )]
    TooFewBits { wanted: f64, smallest: f64 },
    #[error(
        "tensor `{tensor}` can have none of the types to choose from: its rows of {row} elements don't fit them, or it has no importance weights; add another type, such as `f16`"
    )]
    NoType { tensor: String, row: u64 },
    #[error("the plan's sizes overflow 64 bits")]
    Overflow,
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("the model has no weights whose type could be chosen")]
    NothingToChoose,
    #[error(transparent)]
    Method(#[from] MethodError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Llama(#[from] LlamaError),
    #[error(transparent)]
    Walk(WalkError),
    #[error("the input of `{weight}` is not finite: the model's weights are damaged")]
    NotFinite { weight: String },
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
