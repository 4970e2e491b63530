//! An HTTP server with the interface of OpenAI's completions, so that the clients that people have
//! can use a model. It listens on this machine only, and bounds what a client can make it do.

mod api;
mod client;
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
