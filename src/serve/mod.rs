//! An HTTP server with the interface of OpenAI's completions, so that the clients that people have
//! can use a model. It listens on this machine only.

mod api;
mod engine;
mod error;
mod routes;

pub use engine::{Engine, EngineOptions};
pub use routes::{ServeError, serve};
