//! Carries a plan out: transforms, encodes and writes tensor by tensor on all cores, in an order and
//! within a memory budget that do not depend on the number of threads.

mod admitted;
mod contract;
mod division;
mod execute;
mod factored;
mod fitted;
mod inputs;
mod ordered;
mod resources;
mod rounding;
mod transform;

pub(crate) use contract::multiply_out;
pub use division::{DivisionError, OutputFile, divide};
pub use execute::Progress;
pub(crate) use execute::{Job, Output, Work, chunks_of, run};
pub use execute::{PipelineError, Summary, TensorSummary, compress};
pub(crate) use factored::{Factorizer, Made};
pub use fitted::{Fitted, FittedStep, Payload};
pub use inputs::Inputs;
pub use resources::{Options, default_memory};
pub use rounding::Rounder;
pub use transform::{ErrorSums, store_rows};
