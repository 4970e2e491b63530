//! What the documents say holds.

#[path = "../common/mod.rs"]
mod common;

mod families;
mod readme;
mod reference;
mod rooms;
