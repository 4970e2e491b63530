//! Cohere's Command.

use super::Default::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["CohereForCausalLM"],
        architecture: "command-r",
        defaults: &[
            Number("vocab_size", 256_000.0),
            Number("hidden_size", 8192.0),
            Number("intermediate_size", 22_528.0),
            Number("num_hidden_layers", 40.0),
            Number(HEADS, 64.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 8192.0),
            Number("layer_norm_eps", 1e-5),
            Number("logit_scale", 0.0625),
        ],
        // With norms of Q and K, llama.cpp's converter and graph differ from release to release.
        fixed: &[("use_qk_norm", Fixed::False)],
        weights: &[OUTSIDE, ONE_NORM, VALUES, HALVES, GATED],
        parameters: &[
            Parameter::Number("logit_scale", "logit_scale"),
            Parameter::NoRopeScaling,
        ],
        ..FAMILY
    },
    Family {
        names: &["Cohere2ForCausalLM"],
        architecture: "cohere2",
        defaults: &[
            Number("vocab_size", 256_000.0),
            Number("hidden_size", 8_192.0),
            Number("intermediate_size", 22_528.0),
            Number("num_hidden_layers", 40.0),
            Number(HEADS, 64.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 8_192.0),
            Number("layer_norm_eps", 1e-5),
            Number("logit_scale", 0.0625),
            Number("sliding_window", 4096.0),
            Number("rotary_pct", 1.0),
            HeadDim("head_dim"),
        ],
        fixed: &[("attention_bias", Fixed::False)],
        weights: &[OUTSIDE, ONE_NORM, VALUES, HALVES, GATED],
        parameters: &[
            Parameter::Number("logit_scale", "logit_scale"),
            Parameter::Window(Windows::But(4)),
            Parameter::VocabularySize,
            Parameter::PartialRotary,
            Parameter::NoRopeScaling,
        ],
        ..FAMILY
    },
];

/// One norm for attention and the feed-forward layer, which are computed side by side.
const ONE_NORM: &[Weight] = &[NORMS[0]];
