//! DeepSeek's models, and those that are built as they are: Kimi-K2 and GLM-4.7-Flash.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[Family {
    names: &[
        "DeepseekV3ForCausalLM",
        "DeepseekV2ForCausalLM",
        "Glm4MoeLiteForCausalLM",
    ],
    architecture: "deepseek2",
    defaults: &[
        Number("vocab_size", 129_280.0),
        Number("hidden_size", 7168.0),
        Number("intermediate_size", 18_432.0),
        Number("num_hidden_layers", 61.0),
        Number(HEADS, 128.0),
        Same(KV_HEADS, HEADS),
        Number("max_position_embeddings", 4096.0),
        Number("rms_norm_eps", 1e-6),
        Number("n_shared_experts", 0.0),
        Number("first_k_dense_replace", 0.0),
    ],
    // What llama.cpp takes for granted of how heads turn.
    fixed: &[("rope_interleave", Fixed::True)],
    weights: &[
        OUTSIDE,
        NORMS,
        QUERIES,
        KEYS_AND_VALUES,
        LEADING_GATED,
        BEHIND,
    ],
    parameters: &[
        Parameter::Count("first_k_dense_replace", "leading_dense_block_count"),
        Parameter::VocabularySize,
        Parameter::LatentAttention,
        Parameter::Count("moe_intermediate_size", "expert_feed_forward_length"),
        Parameter::Count("n_shared_experts", "expert_shared_count"),
        Parameter::Number("routed_scaling_factor", "expert_weights_scale"),
        Parameter::Switch("norm_topk_prob", "expert_weights_norm"),
    ],
    ..FAMILY
}];

/// Queries, in most models through a latent vector of their own.
const QUERIES: &[Weight] = &[
    optional(layer!(
        "self_attn.q_proj",
        "attn_q",
        &[Latent(LatentDim::Query), Hidden]
    )),
    optional(layer!(
        "self_attn.q_a_proj",
        "attn_q_a",
        &[Latent(LatentDim::QueryRank), Hidden]
    )),
    optional(layer!(
        "self_attn.q_a_layernorm",
        "attn_q_a_norm",
        &[Latent(LatentDim::QueryRank)]
    )),
    optional(layer!(
        "self_attn.q_b_proj",
        "attn_q_b",
        &[Latent(LatentDim::Query), Latent(LatentDim::QueryRank)]
    )),
];

const KEYS_AND_VALUES: &[Weight] = &[
    layer!(
        "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_mqa",
        &[Latent(LatentDim::RankAndRotary), Hidden]
    ),
    layer!(
        "self_attn.kv_a_layernorm",
        "attn_kv_a_norm",
        &[Latent(LatentDim::Rank)]
    ),
    formed(
        layer!(
            "self_attn.kv_b_proj",
            "attn_k_b",
            &[
                Latent(LatentDim::Heads),
                Latent(LatentDim::Rank),
                Latent(LatentDim::Still)
            ]
        ),
        Form::Latent(LatentForm::Keys),
    ),
    formed(
        layer!(
            "self_attn.kv_b_proj",
            "attn_v_b",
            &[
                Latent(LatentDim::Heads),
                Latent(LatentDim::Value),
                Latent(LatentDim::Rank)
            ]
        ),
        Form::Latent(LatentForm::Values),
    ),
    layer!(
        "self_attn.o_proj",
        "attn_output",
        &[Hidden, Latent(LatentDim::Values)]
    ),
];

/// Experts behind the leading layers. DeepSeek-V2 chooses them without a correction, and models may share none.
const BEHIND: &[Weight] = &[
    BEHIND_EXPERTS[0],
    BEHIND_EXPERTS[1],
    BEHIND_EXPERTS[2],
    BEHIND_EXPERTS[3],
    optional(BEHIND_EXPERTS[4]),
    optional(BEHIND_EXPERTS[5]),
    optional(BEHIND_EXPERTS[6]),
    optional(BEHIND_EXPERTS[7]),
];
