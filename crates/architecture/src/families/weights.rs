//! The weights that families have, in groups that several of them share.

use super::{Dim, Permute, Weight};
use Dim::*;

const fn weight(source: &'static str, target: &'static str, shape: &'static [Dim]) -> Weight {
    Weight {
        source,
        target,
        shape,
        permute: Permute::No,
        optional: false,
        shifts: false,
    }
}

/// A norm that shifts, as layer norms do.
const fn shifting(weight: Weight) -> Weight {
    Weight {
        shifts: true,
        ..weight
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

/// What stands outside the layers, and the norms and values in each.
pub const COMMON: &[Weight] = &[
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
pub const HALVES: &[Weight] = &[QUERY, KEY];

/// Q and K reordered: the model rotates pairs.
pub const PAIRS: &[Weight] = &[
    permuted(QUERY, Permute::QueryHeads),
    permuted(KEY, Permute::KeyValueHeads),
];

/// Norms of Q and K within each head.
pub const HEAD_NORMS: &[Weight] = &[
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
pub const GATED: &[Weight] = &[
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

/// What stands outside the layers, and the values in each, where norms come behind attention and the
/// feed-forward layer.
pub const NORMS_BEHIND: &[Weight] = &[
    COMMON[0],
    COMMON[1],
    COMMON[2],
    COMMON[4],
    COMMON[5],
    weight(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.post_attention_norm",
        &[Hidden],
    ),
    weight(
        "model.layers.{}.post_feedforward_layernorm",
        "blk.{}.post_ffw_norm",
        &[Hidden],
    ),
];

/// As [`COMMON`], the second norm under another name of llama.cpp's.
pub const SEED_COMMON: &[Weight] = &[
    COMMON[0],
    COMMON[1],
    COMMON[2],
    COMMON[3],
    COMMON[4],
    COMMON[5],
    weight(
        "model.layers.{}.post_attention_layernorm",
        "blk.{}.post_attention_norm",
        &[Hidden],
    ),
];

/// As [`COMMON`], with layer norms.
pub const LAYER_NORMS: &[Weight] = &[
    COMMON[0],
    shifting(COMMON[1]),
    COMMON[2],
    shifting(COMMON[3]),
    COMMON[4],
    COMMON[5],
    shifting(COMMON[6]),
];

/// As [`COMMON`], with one norm for attention and the feed-forward layer, which are computed side by side.
pub const ONE_NORM: &[Weight] = &[
    COMMON[0], COMMON[1], COMMON[2], COMMON[3], COMMON[4], COMMON[5],
];

/// Norms of all of Q and of all of K.
pub const WHOLE_NORMS: &[Weight] = &[
    weight(
        "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_q_norm",
        &[Query],
    ),
    weight(
        "model.layers.{}.self_attn.k_norm",
        "blk.{}.attn_k_norm",
        &[KeyValue],
    ),
];

/// A feed-forward layer without a gate.
pub const PLAIN: &[Weight] = &[GATED[1], GATED[2]];

/// The same under StarCoder's names.
pub const STARCODER_PLAIN: &[Weight] = &[
    weight(
        "model.layers.{}.mlp.c_fc",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    weight(
        "model.layers.{}.mlp.c_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
];

/// A gated feed-forward layer that all tokens share, beside the experts.
pub const SHARED_EXPERT: &[Weight] = &[
    weight(
        "model.layers.{}.mlp.shared_expert_gate",
        "blk.{}.ffn_gate_inp_shexp",
        &[One, Hidden],
    ),
    weight(
        "model.layers.{}.mlp.shared_expert.gate_proj",
        "blk.{}.ffn_gate_shexp",
        &[SharedFeedForward, Hidden],
    ),
    weight(
        "model.layers.{}.mlp.shared_expert.up_proj",
        "blk.{}.ffn_up_shexp",
        &[SharedFeedForward, Hidden],
    ),
    weight(
        "model.layers.{}.mlp.shared_expert.down_proj",
        "blk.{}.ffn_down_shexp",
        &[Hidden, SharedFeedForward],
    ),
];

/// Mixtral's experts, each a gated feed-forward layer.
pub const MIXTRAL_EXPERTS: &[Weight] = &[
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
pub const QWEN_EXPERTS: &[Weight] = &[
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
