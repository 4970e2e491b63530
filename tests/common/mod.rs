//! What the test binaries share; each has all of it.

#![allow(dead_code)] // no binary uses all of it

pub mod folder;
pub mod hostile;
pub mod markdown;
pub mod parts;
pub mod program;
pub mod record;
pub mod server;
pub mod smaller;
pub mod tiny;
pub mod vocabulary;

#[path = "../../formats/tests/common/spoilt.rs"]
pub mod spoilt;
