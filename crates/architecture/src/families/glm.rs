//! Z.ai's GLM.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["Glm4ForCausalLM"],
        architecture: "glm4",
        defaults: &[
            Number("vocab_size", 151_552.0),
            Number("hidden_size", 4_096.0),
            Number("intermediate_size", 13_696.0),
            Number("num_hidden_layers", 40.0),
            Number(HEADS, 32.0),
            Number(KV_HEADS, 2.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 131_072.0),
            Number("rms_norm_eps", 1.5625e-7),
            Number("head_dim", 128.0),
            Number("partial_rotary_factor", 0.5),
        ],
        weights: &[OUTSIDE, GLM_NORMS, VALUES, HALVES, GATED_TOGETHER],
        parameters: &[Parameter::PartialRotary],
        ..FAMILY
    },
    Family {
        names: &["Glm4MoeForCausalLM"],
        architecture: "glm4moe",
        defaults: &[
            Number("vocab_size", 151_552.0),
            Number("hidden_size", 4_096.0),
            Number("intermediate_size", 10_944.0),
            Number("num_hidden_layers", 46.0),
            Number(HEADS, 96.0),
            Number(KV_HEADS, 8.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 131_072.0),
            Number("rms_norm_eps", 1e-5),
            Number("partial_rotary_factor", 0.5),
            Number("moe_intermediate_size", 1408.0),
            Number("num_experts_per_tok", 8.0),
            Number("n_routed_experts", 128.0),
            Number("n_shared_experts", 1.0),
            Number("first_k_dense_replace", 1.0),
            Number("routed_scaling_factor", 1.0),
        ],
        weights: &[
            OUTSIDE,
            MOE_NORMS,
            VALUES,
            HALVES,
            GLM_HEAD_NORMS,
            LEADING_GATED,
            BEHIND_EXPERTS,
        ],
        parameters: &[
            Parameter::PartialRotary,
            Parameter::Count("moe_intermediate_size", "expert_feed_forward_length"),
            Parameter::Count("n_shared_experts", "expert_shared_count"),
            Parameter::Count("first_k_dense_replace", "leading_dense_block_count"),
            Parameter::Number("routed_scaling_factor", "expert_weights_scale"),
            Parameter::Switch("norm_topk_prob", "expert_weights_norm"),
        ],
        always: &[("glm4moe.expert_gating_func", Constant::Count(2))],
        ..FAMILY
    },
];

/// Norms before and behind attention and the feed-forward layer.
const GLM_NORMS: &[Weight] = &[
    NORMS[0],
    NORMS[1],
    layer!("post_self_attn_layernorm", "post_attention_norm", &[Hidden]),
    layer!("post_mlp_layernorm", "post_ffw_norm", &[Hidden]),
];

/// The norms before attention and before the feed-forward layer, the second under another name of llama.cpp's.
const MOE_NORMS: &[Weight] = &[
    NORMS[0],
    layer!("post_attention_layernorm", "post_attention_norm", &[Hidden]),
];

/// Norms of Q and K that some models have.
const GLM_HEAD_NORMS: &[Weight] = &[optional(HEAD_NORMS[0]), optional(HEAD_NORMS[1])];
