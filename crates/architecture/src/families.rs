//! The families of models as data: how each differs from the others.

use super::config::Default;

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
    pub(super) weights: &'static [&'static [Weight]],
    /// Parameters beyond those that every family has.
    pub(super) parameters: &'static [Parameter],
    /// Whether Llama 3's rotary scaling becomes a `rope_freqs` tensor.
    pub(super) rope_freqs: bool,
    pub(super) tokens: Tokens,
}

const fn weight(source: &'static str, target: &'static str, shape: &'static [Dim]) -> Weight {
    Weight {
        source,
        target,
        shape,
        permute: Permute::No,
        optional: false,
    }
}

const fn optional(weight: Weight) -> Weight {
    Weight {
        optional: true,
        ..weight
    }
}

const fn permuted(weight: Weight, permute: Permute) -> Weight {
    Weight { permute, ..weight }
}

use Dim::*;

/// What stands outside the layers, and the norms and values in each.
const COMMON: &[Weight] = &[
    weight("model.embed_tokens", "token_embd", &[Vocabulary, Hidden]),
    weight("model.norm", "output_norm", &[Hidden]),
    optional(weight("lm_head", "output", &[Vocabulary, Hidden])),
    weight(
        "model.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    ),
    weight(
        "model.layers.{}.self_attn.v_proj",
        "blk.{}.attn_v",
        &[KeyValue, Hidden],
    ),
    weight(
        "model.layers.{}.self_attn.o_proj",
        "blk.{}.attn_output",
        &[Hidden, Query],
    ),
    weight(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    ),
];

const QUERY: Weight = weight(
    "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_q",
    &[Query, Hidden],
);
const KEY: Weight = weight(
    "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_k",
    &[KeyValue, Hidden],
);

/// Q and K as they are: the model rotates halves.
const HALVES: &[Weight] = &[QUERY, KEY];

/// Q and K reordered: the model rotates pairs.
const PAIRS: &[Weight] = &[
    permuted(QUERY, Permute::QueryHeads),
    permuted(KEY, Permute::KeyValueHeads),
];

/// Norms of Q and K within each head.
const HEAD_NORMS: &[Weight] = &[
    weight(
        "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_q_norm",
        &[Head],
    ),
    weight(
        "model.layers.{}.self_attn.k_norm",
        "blk.{}.attn_k_norm",
        &[Head],
    ),
];

/// A gated feed-forward layer.
const GATED: &[Weight] = &[
    weight(
        "model.layers.{}.mlp.gate_proj",
        "blk.{}.ffn_gate",
        &[FeedForward, Hidden],
    ),
    weight(
        "model.layers.{}.mlp.up_proj",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    weight(
        "model.layers.{}.mlp.down_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
];

/// Mixtral's experts, each a gated feed-forward layer.
const MIXTRAL_EXPERTS: &[Weight] = &[
    weight(
        "model.layers.{}.block_sparse_moe.gate",
        "blk.{}.ffn_gate_inp",
        &[Experts, Hidden],
    ),
    weight(
        "model.layers.{}.block_sparse_moe.experts.{e}.w1",
        "blk.{}.ffn_gate_exps",
        &[FeedForward, Hidden],
    ),
    weight(
        "model.layers.{}.block_sparse_moe.experts.{e}.w2",
        "blk.{}.ffn_down_exps",
        &[Hidden, FeedForward],
    ),
    weight(
        "model.layers.{}.block_sparse_moe.experts.{e}.w3",
        "blk.{}.ffn_up_exps",
        &[FeedForward, Hidden],
    ),
];

/// Qwen's experts.
const QWEN_EXPERTS: &[Weight] = &[
    weight(
        "model.layers.{}.mlp.gate",
        "blk.{}.ffn_gate_inp",
        &[Experts, Hidden],
    ),
    weight(
        "model.layers.{}.mlp.experts.{e}.down_proj",
        "blk.{}.ffn_down_exps",
        &[Hidden, ExpertFeedForward],
    ),
    weight(
        "model.layers.{}.mlp.experts.{e}.gate_proj",
        "blk.{}.ffn_gate_exps",
        &[ExpertFeedForward, Hidden],
    ),
    weight(
        "model.layers.{}.mlp.experts.{e}.up_proj",
        "blk.{}.ffn_up_exps",
        &[ExpertFeedForward, Hidden],
    ),
];

const HEADS: &str = "num_attention_heads";
const KV_HEADS: &str = "num_key_value_heads";

/// Every family, in the order in which messages list them.
pub(super) const FAMILIES: &[Family] = &[
    Family {
        names: &["LlamaForCausalLM", "LLaMAForCausalLM"],
        architecture: "llama",
        defaults: &[
            Default::Number("vocab_size", 32_000.0),
            Default::Number("hidden_size", 4096.0),
            Default::Number("intermediate_size", 11_008.0),
            Default::Number("num_hidden_layers", 32.0),
            Default::Number(HEADS, 32.0),
            Default::Same(KV_HEADS, HEADS),
            Default::Number("max_position_embeddings", 2048.0),
            Default::Number("rms_norm_eps", 1e-6),
            Default::HeadDim("head_dim"),
        ],
        ignored: &[],
        weights: &[COMMON, PAIRS, GATED],
        parameters: &[Parameter::VocabularySize, Parameter::RotaryDimensions],
        rope_freqs: true,
        tokens: Tokens::Llama,
    },
    Family {
        names: &["MistralForCausalLM"],
        architecture: "llama",
        defaults: &[
            Default::Number("vocab_size", 32_000.0),
            Default::Number("hidden_size", 4096.0),
            Default::Number("intermediate_size", 14_336.0),
            Default::Number("num_hidden_layers", 32.0),
            Default::Number(HEADS, 32.0),
            Default::Number(KV_HEADS, 8.0),
            Default::Same(KV_HEADS, HEADS),
            Default::Number("max_position_embeddings", 131_072.0),
            Default::Number("rms_norm_eps", 1e-6),
            Default::HeadDim("head_dim"),
        ],
        ignored: &[],
        weights: &[COMMON, PAIRS, GATED],
        parameters: &[Parameter::VocabularySize, Parameter::RotaryDimensions],
        rope_freqs: true,
        tokens: Tokens::Llama,
    },
    Family {
        names: &["Qwen2ForCausalLM"],
        architecture: "qwen2",
        defaults: &[
            Default::Number("vocab_size", 151_936.0),
            Default::Number("hidden_size", 4096.0),
            Default::Number("intermediate_size", 22_016.0),
            Default::Number("num_hidden_layers", 32.0),
            Default::Number(HEADS, 32.0),
            Default::Number(KV_HEADS, 32.0),
            Default::Same(KV_HEADS, HEADS),
            Default::Number("max_position_embeddings", 32_768.0),
            Default::Number("rms_norm_eps", 1e-6),
        ],
        ignored: &[],
        weights: &[COMMON, HALVES, GATED],
        parameters: &[Parameter::Pooling],
        rope_freqs: false,
        tokens: Tokens::Qwen,
    },
    Family {
        names: &["Qwen3ForCausalLM"],
        architecture: "qwen3",
        defaults: &[
            Default::Number("vocab_size", 151_936.0),
            Default::Number("hidden_size", 4096.0),
            Default::Number("intermediate_size", 22_016.0),
            Default::Number("num_hidden_layers", 32.0),
            Default::Number(HEADS, 32.0),
            Default::Number(KV_HEADS, 32.0),
            Default::Same(KV_HEADS, HEADS),
            Default::Number("head_dim", 128.0),
            Default::Number("max_position_embeddings", 32_768.0),
            Default::Number("rms_norm_eps", 1e-6),
        ],
        ignored: &[],
        weights: &[COMMON, HALVES, HEAD_NORMS, GATED],
        parameters: &[Parameter::Pooling],
        rope_freqs: false,
        tokens: Tokens::Qwen,
    },
    Family {
        names: &["GraniteForCausalLM"],
        architecture: "granite",
        defaults: &[
            Default::Number("vocab_size", 32_000.0),
            Default::Number("hidden_size", 4096.0),
            Default::Number("intermediate_size", 11_008.0),
            Default::Number("num_hidden_layers", 32.0),
            Default::Number(HEADS, 32.0),
            Default::Same(KV_HEADS, HEADS),
            Default::Number("max_position_embeddings", 2048.0),
            Default::Number("rms_norm_eps", 1e-6),
            Default::Number("embedding_multiplier", 1.0),
            Default::Number("logits_scaling", 1.0),
            Default::Number("residual_multiplier", 1.0),
            Default::Number("attention_multiplier", 1.0),
        ],
        // llama.cpp takes Granite's head dimension from the hidden size.
        ignored: &["head_dim"],
        weights: &[COMMON, PAIRS, GATED],
        parameters: &[
            Parameter::VocabularySize,
            Parameter::RotaryDimensions,
            Parameter::Number("attention_multiplier", "attention.scale"),
            Parameter::Number("embedding_multiplier", "embedding_scale"),
            Parameter::Number("residual_multiplier", "residual_scale"),
            Parameter::Number("logits_scaling", "logit_scale"),
        ],
        rope_freqs: true,
        tokens: Tokens::Llama,
    },
    Family {
        names: &["MixtralForCausalLM"],
        architecture: "llama",
        defaults: &[
            Default::Number("vocab_size", 32_000.0),
            Default::Number("hidden_size", 4096.0),
            Default::Number("intermediate_size", 14_336.0),
            Default::Number("num_hidden_layers", 32.0),
            Default::Number(HEADS, 32.0),
            Default::Number(KV_HEADS, 8.0),
            Default::Same(KV_HEADS, HEADS),
            Default::Number("max_position_embeddings", 131_072.0),
            Default::Number("rms_norm_eps", 1e-5),
            Default::Number("num_local_experts", 8.0),
            Default::Number("num_experts_per_tok", 2.0),
        ],
        ignored: &[],
        weights: &[COMMON, PAIRS, MIXTRAL_EXPERTS],
        parameters: &[Parameter::VocabularySize, Parameter::RotaryDimensions],
        rope_freqs: true,
        tokens: Tokens::Llama,
    },
    Family {
        names: &["Qwen3MoeForCausalLM"],
        architecture: "qwen3moe",
        defaults: &[
            Default::Number("vocab_size", 151_936.0),
            Default::Number("hidden_size", 2048.0),
            Default::Number("intermediate_size", 6144.0),
            Default::Number("num_hidden_layers", 24.0),
            Default::Number(HEADS, 32.0),
            Default::Number(KV_HEADS, 4.0),
            Default::Number("max_position_embeddings", 32_768.0),
            Default::Number("rms_norm_eps", 1e-6),
            Default::Number("num_experts", 128.0),
            Default::Number("num_experts_per_tok", 8.0),
            Default::Number("moe_intermediate_size", 768.0),
        ],
        ignored: &[],
        weights: &[COMMON, HALVES, HEAD_NORMS, QWEN_EXPERTS],
        parameters: &[Parameter::Count(
            "moe_intermediate_size",
            "expert_feed_forward_length",
        )],
        rope_freqs: false,
        tokens: Tokens::Bpe,
    },
];

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
