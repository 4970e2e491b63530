//! Microsoft's Phi.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["PhiForCausalLM"],
        architecture: "phi2",
        defaults: &[
            Number("vocab_size", 51_200.0),
            Number("hidden_size", 2_048.0),
            Number("intermediate_size", 8_192.0),
            Number("num_hidden_layers", 24.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 2_048.0),
            Number("layer_norm_eps", 1e-5),
            Number("partial_rotary_factor", 0.5),
        ],
        fixed: &[("qk_layernorm", Fixed::False)],
        weights: &[PHI, HALVES],
        parameters: &[Parameter::PartialRotary],
        always: &[("tokenizer.ggml.add_bos_token", Constant::Switch(false))],
        ..FAMILY
    },
    Family {
        names: &["Phi3ForCausalLM"],
        architecture: "phi3",
        defaults: &[
            Number("vocab_size", 32_064.0),
            Number("hidden_size", 3_072.0),
            Number("intermediate_size", 8_192.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 4_096.0),
            Number("rms_norm_eps", 1e-5),
            Number("original_max_position_embeddings", 4096.0),
        ],
        weights: &[OUTSIDE, NORMS, FUSED, GATED_TOGETHER],
        parameters: &[
            Parameter::PartialRotary,
            Parameter::Window(Windows::Everywhere),
        ],
        rotary: Rotary::LongRope,
        tokens: Tokens::Pieces,
        ..FAMILY
    },
];

/// Phi's weights but Q and K: one norm for attention and the feed-forward layer, which are computed side by side.
const PHI: &[Weight] = &[
    OUTSIDE[0],
    shifting(weight("model.final_layernorm", "output_norm", &[Hidden])),
    HEAD,
    shifting(NORMS[0]),
    VALUES[0],
    layer!("self_attn.dense", "attn_output", &[Hidden, Query]),
    layer!("mlp.fc1", "ffn_up", &[FeedForward, Hidden]),
    layer!("mlp.fc2", "ffn_down", &[Hidden, FeedForward]),
];
