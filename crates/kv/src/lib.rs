//! Compresses what a model keeps of a text.

mod cells;
mod chunked_svd;
pub mod codebook;
mod coder;
mod error;
mod levels;
mod lossless;
mod pack;
mod parts;
mod rotated;
mod search;
mod settings;
mod target;
mod transform;
mod turns;
mod unpack;

pub use cells::Cells;
pub use chunked_svd::Ranks;
pub use error::KvError;
pub use pack::{Packing, Way, pack};
pub use search::step_for_ratio;
pub use settings::{Method, Settings};
pub use target::{Target, Turns};
pub use transform::{Encoder, approximate, costs};
pub use turns::{Pairing, Rotary, angles};
pub use unpack::{Put, Unpacker};
