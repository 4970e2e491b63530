//! OpenAI's gpt-oss.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[Family {
    names: &["GptOssForCausalLM"],
    architecture: "gpt-oss",
    defaults: &[
        Number("vocab_size", 201_088.0),
        Number("hidden_size", 2880.0),
        Number("intermediate_size", 2880.0),
        Number("num_hidden_layers", 36.0),
        Number(HEADS, 64.0),
        Number(KV_HEADS, 8.0),
        Number("head_dim", 64.0),
        Number("num_local_experts", 128.0),
        Number("num_experts_per_tok", 4.0),
        Number("sliding_window", 128.0),
        Number("max_position_embeddings", 131_072.0),
        Number("rms_norm_eps", 1e-5),
        Number("rope_theta", 150_000.0),
    ],
    weights: &[
        OUTSIDE,
        NORMS_OF_THIS,
        VALUES,
        HALVES,
        SINKS,
        OF_EXPERTS,
        CODES,
        FLOATS,
    ],
    parameters: &[
        Parameter::Window(Windows::But(2)),
        Parameter::Count("intermediate_size", "expert_feed_forward_length"),
    ],
    ..FAMILY
}];

const NORMS_OF_THIS: &[Weight] = &[
    NORMS[0],
    layer!("post_attention_layernorm", "post_attention_norm", &[Hidden]),
];

/// What each head gives to no token.
const SINKS: &[Weight] = &[named(layer!(
    "self_attn.sinks",
    "attn_sinks.weight",
    &[HeadCount]
))];

const OF_EXPERTS: &[Weight] = &[
    layer!("mlp.router", "ffn_gate_inp", &[Experts, Hidden]),
    formed(
        named(layer!(
            "mlp.experts.gate_up_proj_bias",
            "ffn_gate_exps.bias",
            &[Experts, ExpertFeedForward]
        )),
        Form::AlternateElements(0),
    ),
    formed(
        named(layer!(
            "mlp.experts.gate_up_proj_bias",
            "ffn_up_exps.bias",
            &[Experts, ExpertFeedForward]
        )),
        Form::AlternateElements(1),
    ),
    named(layer!(
        "mlp.experts.down_proj_bias",
        "ffn_down_exps.bias",
        &[Experts, Hidden]
    )),
];

const UP: &[Dim] = &[Experts, ExpertFeedForward, Hidden];
const DOWN: &[Dim] = &[Experts, Hidden, ExpertFeedForward];

/// A weight of experts in one of two forms, of which a checkpoint has either.
const fn of_experts(weight: Weight, form: Form) -> Weight {
    formed(named(weight), form)
}

/// Experts as they are released, in MXFP4.
const CODES: &[Weight] = &[
    of_experts(
        layer!(
            "mlp.experts.gate_up_proj_blocks",
            "ffn_gate_exps.weight",
            UP
        ),
        Form::Alternate(0),
    ),
    of_experts(
        layer!("mlp.experts.gate_up_proj_blocks", "ffn_up_exps.weight", UP),
        Form::Alternate(1),
    ),
    of_experts(
        layer!("mlp.experts.down_proj_blocks", "ffn_down_exps.weight", DOWN),
        Form::Whole,
    ),
];

/// Experts as floats, which lie as `x W` takes them.
const FLOATS: &[Weight] = &[
    of_experts(
        layer!("mlp.experts.gate_up_proj", "ffn_gate_exps.weight", UP),
        Form::TransposedAlternate(0),
    ),
    of_experts(
        layer!("mlp.experts.gate_up_proj", "ffn_up_exps.weight", UP),
        Form::TransposedAlternate(1),
    ),
    of_experts(
        layer!("mlp.experts.down_proj", "ffn_down_exps.weight", DOWN),
        Form::Transposed,
    ),
];
