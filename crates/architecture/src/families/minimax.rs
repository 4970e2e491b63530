//! MiniMax-M2.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[Family {
    names: &["MiniMaxM2ForCausalLM"],
    architecture: "minimax-m2",
    defaults: &[
        Number("vocab_size", 200_064.0),
        Number("hidden_size", 3072.0),
        Number("intermediate_size", 1536.0),
        Number("num_hidden_layers", 62.0),
        Number(HEADS, 48.0),
        Number(KV_HEADS, 8.0),
        Same(KV_HEADS, HEADS),
        Number("head_dim", 128.0),
        Number("num_local_experts", 256.0),
        Number("num_experts_per_tok", 8.0),
        Number("max_position_embeddings", 196_608.0),
        Number("rms_norm_eps", 1e-6),
    ],
    weights: &[
        OUTSIDE,
        NORMS,
        VALUES,
        HALVES,
        NORMS_OF_ALL_HEADS,
        llama::MIXTRAL_EXPERTS,
        CORRECTION,
    ],
    parameters: &[
        Parameter::Count("intermediate_size", "expert_feed_forward_length"),
        Parameter::Count("rotary_dim", "rope.dimension_count"),
    ],
    ..FAMILY
}];

/// Norms of Q and K over all heads together.
const NORMS_OF_ALL_HEADS: &[Weight] = &[
    layer!("self_attn.q_norm", "attn_q_norm", &[Query]),
    layer!("self_attn.k_norm", "attn_k_norm", &[KeyValue]),
];

/// What corrects the choice of experts.
const CORRECTION: &[Weight] = &[named(layer!(
    "block_sparse_moe.e_score_correction_bias",
    "exp_probs_b.bias",
    &[Experts]
))];
