//! Runs a model block by block over a text, the original and the compressed side by side, and treats
//! each layer for what the compressed layers before it give.

mod block;
mod checkpoint;
mod company;
mod cut;
mod embedding;
mod error;
mod fit;
mod head;
mod journal;
mod original;
mod run;
mod runner;
mod stream;
mod unfitted;
mod walk;

pub use block::Block;
pub use checkpoint::Checkpoint;
pub use cut::Cut;
pub use embedding::{EmbeddingError, NAME as EMBEDDING, looked_up, streams_of};
pub use error::WalkError;
pub use head::{Head, Probe};
pub use journal::Journal;
pub use original::BlockwisePredictions;
pub use run::{BlockwiseError, Places, Sequences, Words, check, fit, pool};
pub use runner::Runner;
pub use stream::Stream;
pub use unfitted::{ROWS_PER_ELEMENT, Reason, Unfitted, describe};
pub use walk::{MOST_SUMS, Original, WIDEST};
