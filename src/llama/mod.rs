//! Wraps llama.cpp and ggml safely; with the crate `mapped`, the only code with `unsafe`.

pub mod activations;
mod adapter;
pub mod admission;
pub mod backend;
pub mod context;
mod contracted;
pub mod device;
pub mod error;
pub mod exit;
pub mod extent;
pub mod feed;
pub mod generate;
mod ggml;
pub mod guard;
pub mod lockstep;
mod log;
pub mod model;
pub mod parallel;
mod sampler;
mod start;
mod state;
mod swap;
pub mod tokenizing;
mod tokens;
mod vocabulary;
mod watched;
