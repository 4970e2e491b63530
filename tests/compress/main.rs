//! Files that `dwindle compress` writes: what is in them, where they go, and what an end before the end
//! leaves.

#[path = "../common/mod.rs"]
mod common;

mod columns_and_blocks;
mod edges;
mod families;
mod heads_and_experts;
mod interruption;
mod mark;
mod outputs;
mod parts;
mod presets;
mod resuming;
mod targets;
