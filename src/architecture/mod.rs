//! Models in GGUF's terms: names, shapes, metadata and tokenizer, whatever the source was.

use dwindle_formats::gguf::Metadata;

/// A checkpoint seen as the model that llama.cpp knows.
#[derive(Debug, Clone)]
pub struct Model {
    /// llama.cpp's name of the family (`llama`, `qwen3`).
    pub architecture: String,
    /// What the GGUF file will say, less what depends on the output's types
    /// (`general.file_type`, `general.quantization_version`).
    pub metadata: Metadata,
    /// Every tensor of the output in output order.
    pub tensors: Vec<ModelTensor>,
}

/// A tensor of the model and how to assemble it from the source.
#[derive(Debug, Clone)]
pub struct ModelTensor {
    /// GGUF name (`blk.0.attn_q.weight`).
    pub name: String,
    /// Dimensions, row length first.
    pub shape: Vec<u64>,
    /// How its rows come out of the source.
    pub assembly: Assembly,
    /// llama.cpp keeps it in F32 whatever the type of the file (norms, biases, 1-D tensors,
    /// routers), as its converter does.
    pub always_f32: bool,
}

/// How a model tensor's rows come out of source tensors. Rows are moved as bytes: no element is
/// ever recomputed.
#[derive(Debug, Clone, PartialEq)]
pub enum Assembly {
    /// The source tensor as it is (index into [`crate::checkpoint::Source::tensors`]).
    Copy(usize),
    /// Rows of each head reordered from rotary halves to interleaved pairs, as llama.cpp's
    /// `llama` family wants Q and K.
    PermuteRotary {
        /// The source tensor.
        tensor: usize,
        /// Heads that share the rows evenly.
        heads: u64,
    },
    /// Source tensors stacked along a new slowest dimension (experts).
    Stack(Vec<usize>),
    /// Values made from the configuration (`rope_freqs`), F32.
    Computed(Vec<f32>),
}
