//! The streaming executor: reads, transforms, encodes and writes tensor by tensor on all cores,
//! in an order and within a memory budget that do not depend on the number of threads.

mod chain;
mod compare;
mod contract;
mod execute;
mod factor;
mod factored;
mod influence;
mod load;
mod observe;
mod ordered;
mod repair;
mod rotary;
mod rounding;
mod sequential;
mod side_by_side;
mod stock;
mod transform;
mod unfitted;

pub use compare::{TensorDifference, compare};
pub use execute::{Inputs, Options, PipelineError, Summary, TensorSummary, compress, export};
pub use influence::influence;
pub use load::{Factors, LoadError, identity, load, load_as};
pub(crate) use ordered::ordered;
pub use repair::repair;
pub use rotary::rotary_pairs;
pub use sequential::{Fitted, fit};
pub use side_by_side::{FitError, FitOptions};
pub use stock::{StockError, StockModel};
pub use transform::ErrorSums;
pub use unfitted::{Reason, Unfitted};
