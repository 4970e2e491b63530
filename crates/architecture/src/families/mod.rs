//! The families of models as data: how each differs from the others.

mod table;
mod weights;

use super::config::Default;
pub(super) use table::FAMILIES;

/// A number of the configuration that a tensor's dimension must equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dim {
    Vocabulary,
    Hidden,
    FeedForward,
    /// Query heads times head dimension.
    Query,
    /// Key and value heads times head dimension.
    KeyValue,
    Head,
    Experts,
    /// What one expert's feed-forward layer is wide.
    ExpertFeedForward,
    /// What the feed-forward layer is wide that all tokens share.
    SharedFeedForward,
    One,
}

/// Whether rows are in the order of rotary halves and must be reordered into pairs, and by which
/// heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permute {
    No,
    QueryHeads,
    KeyValueHeads,
}

/// A weight: its name in the checkpoint and in GGUF, `{}` standing for the layer and `{e}` for the
/// expert, without `.weight` or `.bias`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight {
    pub(super) source: &'static str,
    pub(super) target: &'static str,
    /// Slowest dimension first, as the checkpoint has them; a bias has the first alone.
    pub(super) shape: &'static [Dim],
    pub(super) permute: Permute,
    /// Whether a model may be without it.
    pub(super) optional: bool,
    /// Whether it is a norm that may have a bias; matrices may have one in any case.
    pub(super) shifts: bool,
}

/// What a number of the configuration becomes in GGUF.
#[derive(Debug, Clone, Copy)]
pub(super) enum Parameter {
    /// A count under a key of its own.
    Count(&'static str, &'static str),
    /// A number under a key of its own, unless it is zero.
    Number(&'static str, &'static str),
    /// The rotary dimensions: the head dimension.
    RotaryDimensions,
    /// The size of the vocabulary.
    VocabularySize,
    /// How a sentence-transformers model pools, where `modules.json` says so.
    Pooling,
    /// That rotary frequencies are not scaled.
    NoRopeScaling,
}

/// A value of the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fixed {
    False,
    Count(u32),
}

/// Where the vocabulary comes from, tried in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tokens {
    /// `tokenizer.model`, then `tokenizer.json` with SentencePiece's pieces, then byte-level BPE.
    Llama,
    /// `tokenizer.model`, then byte-level BPE.
    Qwen,
    /// Byte-level BPE only.
    Bpe,
}

/// A model family.
#[derive(Debug)]
pub(super) struct Family {
    /// Names in `architectures` of `config.json`.
    pub(super) names: &'static [&'static str],
    /// llama.cpp's name.
    pub(super) architecture: &'static str,
    /// What the configuration says where it says nothing.
    pub(super) defaults: &'static [Default],
    /// Keys of the configuration that this family does not heed.
    pub(super) ignored: &'static [&'static str],
    /// What llama.cpp's graph takes for granted: another value in the configuration is refused.
    pub(super) fixed: &'static [(&'static str, Fixed)],
    pub(super) weights: &'static [&'static [Weight]],
    /// Parameters beyond those that every family has.
    pub(super) parameters: &'static [Parameter],
    /// Whether Llama 3's rotary scaling becomes a `rope_freqs` tensor.
    pub(super) rope_freqs: bool,
    pub(super) tokens: Tokens,
}

/// The family of one of the names in `architectures`.
pub(super) fn find(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|f| f.names.contains(&name))
}

/// What messages list as supported.
pub(super) fn supported() -> String {
    FAMILIES
        .iter()
        .map(|f| format!("`{}`", f.names[0]))
        .collect::<Vec<_>>()
        .join(", ")
}
