//! File formats of dwindle: GGUF v3 and, on top of it, the compressed container; llama.cpp's saved states, packed or not;
//! and PyTorch's files of weights, which are read only.
//!
//! Bytes in, bytes out: this crate knows no mathematics and no llama.cpp, and has no `unsafe`.

#![forbid(unsafe_code)]

pub mod bounded;
pub mod container;
pub mod gguf;
pub mod output;
pub mod packed;
pub mod pickle;
pub mod state;

/// The examples of the README are compiled as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
