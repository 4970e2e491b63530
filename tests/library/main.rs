//! The library's own rooms, without the program.

#[path = "../common/mod.rs"]
mod common;

mod activations;
mod architecture;
mod blockwise;
mod embeddings;
mod families;
mod llama;
mod rounding;
mod sources;
mod tokenizers;
