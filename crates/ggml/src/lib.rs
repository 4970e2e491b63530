//! ggml's element types: what they hold, how floats become them, and which ones llama-quantize
//! mixes.
//!
//! A floor of its own, so that whatever reads, plans and computes builds without llama.cpp.

mod convert;
mod library;
mod mixture;

pub use convert::{
    GgmlError, MAX_MAGNITUDE, dequantize, quantize, quantized, readable, requires_importance,
    writable,
};
pub use library::{Library, install, mixture_types};
pub use mixture::{
    Choice, FILE_TYPES, FileType, MAX_LAYERS, MixtureError, MixtureTensor, ModelDesc,
};
