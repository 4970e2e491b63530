//! Models on a device whose memory is not the program's: another process's, by llama.cpp's RPC. A pointer
//! into such memory that is followed is a fault. Every command that runs a model gives there what it gives
//! on the CPU.

#[path = "../common/mod.rs"]
mod common;

mod placement;
mod server;
mod sums;
mod walks;
