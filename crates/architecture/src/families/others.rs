//! Families of which there is one each.

use super::Default::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["Exaone4ForCausalLM"],
        architecture: "exaone4",
        defaults: &[
            Number("vocab_size", 102_400.0),
            Number("hidden_size", 4_096.0),
            Number("intermediate_size", 16_384.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 2_048.0),
            Number("rms_norm_eps", 1e-5),
        ],
        weights: &[OUTSIDE, NORMS_BEHIND, VALUES, HALVES, HEAD_NORMS, GATED],
        parameters: &[
            Parameter::VocabularySize,
            Parameter::Window(Windows::At(64)),
        ],
        rotary: Rotary::Llama3,
        ..FAMILY
    },
    Family {
        names: &["Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"],
        architecture: "ernie4_5",
        defaults: &[
            Number("vocab_size", 103_424.0),
            Number("hidden_size", 1_024.0),
            Number("intermediate_size", 3_072.0),
            Number("num_hidden_layers", 18.0),
            Number(HEADS, 16.0),
            Number(KV_HEADS, 2.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 131_072.0),
            Number("rms_norm_eps", 1e-5),
            Number("head_dim", 128.0),
            Number("rope_theta", 500_000.0),
        ],
        weights: &[OUTSIDE, NORMS, VALUES, HALVES, GATED],
        tokens: Tokens::Qwen,
        ..FAMILY
    },
    Family {
        names: &["Dots1ForCausalLM"],
        architecture: "dots1",
        defaults: &[
            Number("vocab_size", 152_064.0),
            Number("hidden_size", 4_608.0),
            Number("intermediate_size", 10_944.0),
            Number("num_hidden_layers", 62.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 2_048.0),
            Number("rms_norm_eps", 1e-6),
            Number("moe_intermediate_size", 1408.0),
            Number("routed_scaling_factor", 1.0),
        ],
        weights: &[
            OUTSIDE,
            NORMS,
            VALUES,
            HALVES,
            HEAD_NORMS,
            LEADING_GATED,
            BEHIND_EXPERTS,
        ],
        parameters: &[
            Parameter::Count("moe_intermediate_size", "expert_feed_forward_length"),
            Parameter::Count("n_shared_experts", "expert_shared_count"),
            Parameter::Count("first_k_dense_replace", "leading_dense_block_count"),
            Parameter::Number("routed_scaling_factor", "expert_weights_scale"),
            Parameter::Switch("norm_topk_prob", "expert_weights_norm"),
        ],
        ..FAMILY
    },
];
