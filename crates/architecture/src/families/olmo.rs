//! Ai2's OLMo.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["Olmo2ForCausalLM"],
        architecture: "olmo2",
        defaults: &[
            Number("vocab_size", 50_304.0),
            Number("hidden_size", 4096.0),
            Number("intermediate_size", 11_008.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 2048.0),
            Number("rms_norm_eps", 1e-5),
        ],
        weights: &[OUTSIDE, NORMS_BEHIND, VALUES, HALVES, WHOLE_NORMS, GATED],
        ..FAMILY
    },
    Family {
        names: &["OlmoeForCausalLM"],
        architecture: "olmoe",
        defaults: &[
            Number("vocab_size", 50_304.0),
            Number("hidden_size", 2048.0),
            Number("intermediate_size", 2048.0),
            Number("num_hidden_layers", 16.0),
            Number(HEADS, 16.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 4096.0),
            Number("rms_norm_eps", 1e-5),
            Number("num_experts", 64.0),
            Number("num_experts_per_tok", 8.0),
        ],
        fixed: &[("norm_topk_prob", Fixed::False)],
        weights: &[OUTSIDE, NORMS, VALUES, HALVES, WHOLE_NORMS, EXPERTS],
        ..FAMILY
    },
    Family {
        names: &["OlmoForCausalLM"],
        architecture: "olmo",
        defaults: &[
            Number("vocab_size", 50_304.0),
            Number("hidden_size", 4_096.0),
            Number("intermediate_size", 11_008.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 2_048.0),
            Number("layer_norm_eps", 1e-5),
        ],
        weights: &[OLMO, VALUES, PAIRS, GATED],
        parameters: &[Parameter::Number("clip_qkv", "attention.clamp_kqv")],
        ..FAMILY
    },
    Family {
        names: &["Olmo3ForCausalLM"],
        architecture: "olmo2",
        defaults: &[
            Number("vocab_size", 50_304.0),
            Number("hidden_size", 4_096.0),
            Number("intermediate_size", 11_008.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 2_048.0),
            Number("rms_norm_eps", 1e-5),
            Number("sliding_window", 4096.0),
            Number("rope_theta", 500_000.0),
        ],
        weights: &[OUTSIDE, NORMS_BEHIND, VALUES, HALVES, WHOLE_NORMS, GATED],
        parameters: &[Parameter::Window(Windows::ByLayer)],
        ..FAMILY
    },
];

/// Norms of all of Q and of all of K.
const WHOLE_NORMS: &[Weight] = &[
    layer!("self_attn.q_norm", "attn_q_norm", &[Query]),
    layer!("self_attn.k_norm", "attn_k_norm", &[KeyValue]),
];

/// What stands outside the layers; norms have no weights.
const OLMO: &[Weight] = &[OUTSIDE[0], HEAD];
