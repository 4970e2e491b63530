//! Diagnoses how much compressing each tensor costs: by its spectrum, by what each method loses of
//! its layer's output, and by running the model with only that tensor compressed.

mod running;
mod tensor;

pub use running::{activations, divergences};
pub use tensor::{DiagnoseError, tensors};
