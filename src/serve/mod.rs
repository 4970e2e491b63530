//! An OpenAI-compatible HTTP server. It listens on localhost only, and bounds the work that a
//! client can cause.

mod api;
mod client;
mod embeddings;
mod engine;
mod error;
mod intake;
mod limits;
mod line;
mod listen;
mod origin;
mod routes;
mod watched;

pub use engine::{Engine, EngineOptions};
pub use listen::{GRACE, ServeError, listen, serve};
