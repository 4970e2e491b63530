//! Makes the stock model of a container or a checkpoint, tensor by tensor, and passes it to
//! llama.cpp.

mod chain;
mod export;
mod load;
mod replaceable;
mod stock;

pub use export::{ExportError, export};
pub use load::{Factors, LoadError, identity, key, load, load_as, load_from};
pub use replaceable::{load_replaceable, load_replaceable_from};
pub(crate) use stock::decode_values;
pub use stock::{StockError, StockModel};
