//! The streaming executor: reads, transforms, encodes and writes tensor by tensor on all cores,
//! in an order and within a memory budget that do not depend on the number of threads.

mod chain;
mod compare;
mod contract;
mod execute;
mod factor;
mod factored;
mod load;
mod ordered;
mod sequential;
mod stock;
mod transform;

pub use compare::{TensorDifference, compare};
pub use execute::{Inputs, Options, PipelineError, Summary, TensorSummary, compress, export};
pub use load::{Factors, LoadError, identity, load, load_as};
pub use sequential::{FitError, FitOptions, Fitted, fit};
pub use stock::{StockError, StockModel};
pub use transform::ErrorSums;
