//! Measures perplexity, KL divergence, speed and memory.
//!
//! Perplexity and divergence follow `llama-perplexity` to the printed digits, so that the figures
//! can be compared with published ones. Nothing here prints.

mod cache;
mod chunks;
mod embeddings;
mod perplexity;
mod softmax;
mod speed;
mod stats;

pub use cache::{cache_key, cache_matches};
pub use chunks::{Chunks, EvalOptions};
pub use embeddings::{Cosines, compare_embeddings, cosine};
pub use perplexity::{
    EvalError, Evaluation, Logits, Progress, Reference, compare, perplexity, write_reference,
};
pub use softmax::exact_divergence;
pub use speed::{Speed, SpeedOptions, memory_now, peak_memory, speed};
pub use stats::{Divergence, Estimate, Perplexity};
