//! Files that are run, measured and exported; above all those with factors.

#[path = "../common/mod.rs"]
mod common;

mod adapters;
mod cache;
mod embeddings;
mod executed_factors;
mod export;
mod factor_forms;
mod families;
mod quality_and_speed;
mod sessions;
mod split_models;
mod windows;
