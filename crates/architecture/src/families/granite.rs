//! IBM's Granite.

use super::Default::*;
use super::Dim::*;
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
