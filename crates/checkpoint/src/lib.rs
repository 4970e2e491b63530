//! Reads named tensors from a Hugging Face folder or a GGUF file, and the adapters that change them.

mod cache;
mod contents;
mod error;
pub mod fingerprint;
mod floats;
pub mod gguf;
pub mod huggingface;
pub mod lora;
pub mod merged;
mod quantized;
mod raw;
mod reading;
mod shards;
mod watched;

use std::borrow::Cow;
use std::ops::Range;

use dwindle_formats::gguf::TensorType;

pub use cache::{Caches, resolve};
pub use error::Error;
pub use floats::floats;
pub use watched::{Changed, SourceFile};

/// One tensor of a source, as it is stored there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTensor {
    /// The source's own name (`model.layers.0.self_attn.q_proj.weight`, `blk.0.attn_q.weight`).
    pub name: String,
    /// Element type as stored.
    pub ty: TensorType,
    /// Dimensions in ggml's order, row length first: the reverse of Hugging Face's.
    pub shape: Vec<u64>,
}

impl SourceTensor {
    /// Bytes of all rows.
    pub fn len(&self) -> usize {
        self.ty.bytes(&self.shape).unwrap_or(0) as usize
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where tensors come from. Implementations map their files into memory.
pub trait Source: Send + Sync {
    /// Every tensor, sorted as the source's own tools list them.
    fn tensors(&self) -> &[SourceTensor];

    /// The files that hold them, as they were when opened.
    fn files(&self) -> &[SourceFile] {
        &[]
    }

    /// A span of a tensor's bytes, which are its rows one after another, little-endian: from the map where
    /// the file holds them as they are, computed where it holds codes.
    ///
    /// # Panics
    /// When the span reaches past [`SourceTensor::len`].
    fn bytes(&self, index: usize, span: Range<usize>) -> Cow<'_, [u8]>;

    /// Tells the system that the bytes of a tensor will not be needed again soon, so that they
    /// stop counting against the memory of this process.
    fn release(&self, index: usize);
}
