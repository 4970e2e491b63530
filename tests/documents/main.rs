//! What the documents say holds.

#[path = "../common/mod.rs"]
mod common;

mod readme;
mod reference;
mod rooms;
