//! IBM's Granite.

use super::Default::*;
use super::Dim::*;
use super::state_spaces::state_spaces;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["GraniteForCausalLM"],
        architecture: "granite",
        defaults: &[
            Number("vocab_size", 32_000.0),
            Number("hidden_size", 4096.0),
            Number("intermediate_size", 11_008.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 2048.0),
            Number("rms_norm_eps", 1e-6),
            Number("embedding_multiplier", 1.0),
            Number("logits_scaling", 1.0),
            Number("residual_multiplier", 1.0),
            Number("attention_multiplier", 1.0),
        ],
        // llama.cpp takes Granite's head dimension from the hidden size.
        ignored: &["head_dim"],
        weights: &[OUTSIDE, NORMS, VALUES, PAIRS, GATED],
        parameters: GRANITE,
        rotary: Rotary::Llama3,
        tokens: Tokens::Llama,
        ..FAMILY
    },
    Family {
        names: &["GraniteMoeHybridForCausalLM"],
        among: Among::WithoutStateSpaces,
        architecture: "granite",
        defaults: HYBRID,
        ignored: &["head_dim"],
        fixed: &[("num_local_experts", Fixed::Count(0))],
        weights: &[OUTSIDE, NORMS, VALUES, PAIRS, SHARED],
        parameters: HYBRID_PARAMETERS,
        rotary: Rotary::Llama3,
        ..FAMILY
    },
    Family {
        names: &["GraniteMoeHybridForCausalLM"],
        among: Among::WithStateSpaces,
        architecture: "granitehybrid",
        defaults: HYBRID,
        ignored: &["head_dim"],
        fixed: &[("mamba_proj_bias", Fixed::False)],
        weights: &[
            OUTSIDE,
            NORMS,
            ATTENDING,
            STATE_SPACES,
            GRANITE_EXPERTS_IF_ANY,
            SHARED,
            SHARED_BESIDE_EXPERTS,
        ],
        parameters: HYBRID_PARAMETERS,
        ..FAMILY
    },
    Family {
        names: &["GraniteMoeForCausalLM"],
        architecture: "granitemoe",
        defaults: &[
            Number("vocab_size", 32_000.0),
            Number("hidden_size", 4_096.0),
            Number("intermediate_size", 11_008.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 2_048.0),
            Number("rms_norm_eps", 1e-6),
            Number("embedding_multiplier", 1.0),
            Number("logits_scaling", 1.0),
            Number("residual_multiplier", 1.0),
            Number("attention_multiplier", 1.0),
            Number("num_local_experts", 8.0),
            Number("num_experts_per_tok", 2.0),
        ],
        ignored: &["head_dim"],
        weights: &[OUTSIDE, NORMS, VALUES, PAIRS, GRANITE_EXPERTS],
        parameters: GRANITE,
        rotary: Rotary::Llama3,
        tokens: Tokens::Llama,
        ..FAMILY
    },
];

const IN_HALVES: Weight = layer!(
    "block_sparse_moe.input_linear",
    "ffn_gate_exps",
    &[Experts, FeedForward, Hidden]
);

/// Experts in stacks, the gates and what they gate in one.
const GRANITE_EXPERTS: &[Weight] = &[
    layer!(
        "block_sparse_moe.router.layer",
        "ffn_gate_inp",
        &[Experts, Hidden]
    ),
    formed(IN_HALVES, Form::Half(0)),
    formed(
        Weight {
            target: "blk.{}.ffn_up_exps",
            ..IN_HALVES
        },
        Form::Half(1),
    ),
    layer!(
        "block_sparse_moe.output_linear",
        "ffn_down_exps",
        &[Experts, Hidden, FeedForward]
    ),
];

/// Granite's parameters: what its graph multiplies by, and divides logits by.
const GRANITE: &[Parameter] = &[
    Parameter::VocabularySize,
    Parameter::RotaryDimensions,
    Parameter::Number("attention_multiplier", "attention.scale"),
    Parameter::Number("embedding_multiplier", "embedding_scale"),
    Parameter::Number("residual_multiplier", "residual_scale"),
    Parameter::Number("logits_scaling", "logit_scale"),
];

const HYBRID: &[Default] = &[
    Number("vocab_size", 32_000.0),
    Number("hidden_size", 4096.0),
    Number("intermediate_size", 11_008.0),
    Number("shared_intermediate_size", 1024.0),
    Number("num_hidden_layers", 32.0),
    Number(HEADS, 32.0),
    Same(KV_HEADS, HEADS),
    Number("max_position_embeddings", 2048.0),
    Number("rms_norm_eps", 1e-6),
    Number("embedding_multiplier", 1.0),
    Number("logits_scaling", 1.0),
    Number("residual_multiplier", 1.0),
    Number("attention_multiplier", 1.0),
    Number("num_local_experts", 8.0),
    Number("num_experts_per_tok", 2.0),
    Number("mamba_n_heads", 128.0),
    Number("mamba_n_groups", 1.0),
    Number("mamba_d_state", 256.0),
    Number("mamba_d_conv", 4.0),
    Number("mamba_expand", 2.0),
];

const SHARED_IN: Weight = only(
    layer!(
        "shared_mlp.input_linear",
        "ffn_gate",
        &[SharedFeedForward, Hidden]
    ),
    Layers::WithoutExperts,
);

/// The feed-forward layer of a model without experts, the gate and what it gates in one.
const SHARED: &[Weight] = &[
    formed(SHARED_IN, Form::Half(0)),
    formed(
        Weight {
            target: "blk.{}.ffn_up",
            ..SHARED_IN
        },
        Form::Half(1),
    ),
    only(
        layer!(
            "shared_mlp.output_linear",
            "ffn_down",
            &[Hidden, SharedFeedForward]
        ),
        Layers::WithoutExperts,
    ),
];

/// The same beside experts.
const SHARED_BESIDE_EXPERTS: &[Weight] = &[
    beside(SHARED[0], "blk.{}.ffn_gate_shexp"),
    beside(SHARED[1], "blk.{}.ffn_up_shexp"),
    beside(SHARED[2], "blk.{}.ffn_down_shexp"),
];

const fn beside(weight: Weight, target: &'static str) -> Weight {
    Weight {
        target,
        layers: Layers::WithExperts,
        ..weight
    }
}

const GRANITE_EXPERTS_IF_ANY: &[Weight] = &[
    only(GRANITE_EXPERTS[0], Layers::WithExperts),
    only(GRANITE_EXPERTS[1], Layers::WithExperts),
    only(GRANITE_EXPERTS[2], Layers::WithExperts),
    only(GRANITE_EXPERTS[3], Layers::WithExperts),
];

/// Attention. Nothing turns, so that Q and K lie as they come, which the converter reorders none the less.
const ATTENDING: &[Weight] = &[
    only(PAIRS[0], Layers::Keyed),
    only(PAIRS[1], Layers::Keyed),
    only(VALUES[0], Layers::Keyed),
    only(VALUES[1], Layers::Keyed),
];

const STATE_SPACES: &[Weight] = state_spaces!("model.layers.{}.mamba", Layers::Keyless);

const HYBRID_PARAMETERS: &[Parameter] = &[
    GRANITE[0],
    GRANITE[1],
    GRANITE[2],
    GRANITE[3],
    GRANITE[4],
    GRANITE[5],
    Parameter::Count(
        "shared_intermediate_size",
        "expert_shared_feed_forward_length",
    ),
    Parameter::HeadsWhereAttending,
    Parameter::StateSpaces,
];
