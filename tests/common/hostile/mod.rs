//! Models that are wrong in ways that no checksum shows.

pub mod file;
pub mod mutation;
