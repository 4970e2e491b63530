//! dwindle converts a checkpoint, tensor by tensor, into a smaller file that runs under llama.cpp,
//! and proves what the smaller file costs in quality.
//!
//! The modules stand in the order in which data flows through them.

pub mod checkpoint;

pub mod architecture;

pub mod statistics;

pub mod method;

pub mod plan;

pub mod pipeline;

pub mod llama;

pub mod eval;
