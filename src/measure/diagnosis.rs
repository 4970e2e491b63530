//! Which tensors bear compression and which must not be touched: by their spectra, by what each
//! method loses of their layers' outputs, and by running the model with one of them compressed.

mod running;
mod tensor;

pub use running::{activations, divergences};
pub use tensor::{DiagnoseError, tensors};
