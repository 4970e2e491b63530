//! Makes the stock model of a container or a checkpoint, tensor by tensor, and passes it to
//! llama.cpp.

mod chain;
mod export;
mod load;
mod stock;

pub use export::{ExportError, export};
pub use load::{Factors, LoadError, identity, load, load_as};
pub(crate) use stock::decode_values;
pub use stock::{StockError, StockModel};
