//! `dwindle serve` as clients meet it.

#[path = "../common/mod.rs"]
mod common;

mod bounds;
mod connections;
mod embeddings;
mod ending;
mod parking;
mod requests;
mod strangers;
