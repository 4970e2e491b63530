//! Liquid AI's LFM2, most of whose layers are short convolutions.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[Family {
    names: &["Lfm2ForCausalLM", "LFM2ForCausalLM"],
    architecture: "lfm2",
    defaults: &[
        Number("vocab_size", 65_536.0),
        Number("hidden_size", 2560.0),
        Number("num_hidden_layers", 32.0),
        Number(HEADS, 32.0),
        Number(KV_HEADS, 8.0),
        Number("max_position_embeddings", 128_000.0),
        Number("norm_eps", 1e-5),
        Number("conv_L_cache", 3.0),
        Number("rope_theta", 1e6),
        Adjusted,
    ],
    fixed: &[("conv_bias", Fixed::False)],
    weights: &[
        OUTSIDE_ENDS,
        NORMS_BY_OTHER_NAMES,
        ATTENDING,
        CONVOLUTIONS,
        FEED_FORWARD,
    ],
    parameters: &[
        Parameter::HeadsWhereAttending,
        Parameter::VocabularySize,
        Parameter::Count("conv_L_cache", "shortconv.l_cache"),
    ],
    ..FAMILY
}];

const OUTSIDE_ENDS: &[Weight] = &[
    OUTSIDE[0],
    // llama.cpp's name of the norm behind the last layer.
    weight("model.embedding_norm", "token_embd_norm", &[Hidden]),
    HEAD,
];

const NORMS_BY_OTHER_NAMES: &[Weight] = &[
    layer!("operator_norm", "attn_norm", &[Hidden]),
    layer!("ffn_norm", "ffn_norm", &[Hidden]),
];

const ATTENDING: &[Weight] = &[
    only(HALVES[0], Layers::Keyed),
    only(HALVES[1], Layers::Keyed),
    only(VALUES[0], Layers::Keyed),
    only(
        layer!("self_attn.out_proj", "attn_output", &[Hidden, Query]),
        Layers::Keyed,
    ),
    only(
        layer!("self_attn.q_layernorm", "attn_q_norm", &[Head]),
        Layers::Keyed,
    ),
    only(
        layer!("self_attn.k_layernorm", "attn_k_norm", &[Head]),
        Layers::Keyed,
    ),
];

const CONVOLUTIONS: &[Weight] = &[
    only(
        formed(
            layer!("conv.conv", "shortconv.conv", &[Hidden, Reach]),
            Form::Convolution,
        ),
        Layers::Keyless,
    ),
    only(
        layer!("conv.in_proj", "shortconv.in_proj", &[TriplyHidden, Hidden]),
        Layers::Keyless,
    ),
    only(
        layer!("conv.out_proj", "shortconv.out_proj", &[Hidden, Hidden]),
        Layers::Keyless,
    ),
];

const FEED_FORWARD: &[Weight] = &[
    layer!("feed_forward.w1", "ffn_gate", &[FeedForward, Hidden]),
    layer!("feed_forward.w2", "ffn_down", &[Hidden, FeedForward]),
    layer!("feed_forward.w3", "ffn_up", &[FeedForward, Hidden]),
];
