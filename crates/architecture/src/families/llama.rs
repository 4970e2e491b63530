//! Llama and what is made like it.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["LlamaForCausalLM", "LLaMAForCausalLM"],
        architecture: "llama",
        defaults: &[
            Number("vocab_size", 32_000.0),
            Number("hidden_size", 4096.0),
            Number("intermediate_size", 11_008.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 2048.0),
            Number("rms_norm_eps", 1e-6),
            HeadDim("head_dim"),
        ],
        weights: &[OUTSIDE, NORMS, VALUES, PAIRS, GATED],
        parameters: &[Parameter::VocabularySize, Parameter::RotaryDimensions],
        rotary: Rotary::Llama3,
        tokens: Tokens::Llama,
        ..FAMILY
    },
    Family {
        names: &["MistralForCausalLM"],
        architecture: "llama",
        defaults: &[
            Number("vocab_size", 32_000.0),
            Number("hidden_size", 4096.0),
            Number("intermediate_size", 14_336.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Number(KV_HEADS, 8.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 131_072.0),
            Number("rms_norm_eps", 1e-6),
            HeadDim("head_dim"),
        ],
        weights: &[OUTSIDE, NORMS, VALUES, PAIRS, GATED],
        parameters: &[Parameter::VocabularySize, Parameter::RotaryDimensions],
        rotary: Rotary::Llama3,
        tokens: Tokens::Llama,
        ..FAMILY
    },
    Family {
        names: &["MixtralForCausalLM"],
        architecture: "llama",
        defaults: &[
            Number("vocab_size", 32_000.0),
            Number("hidden_size", 4096.0),
            Number("intermediate_size", 14_336.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Number(KV_HEADS, 8.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 131_072.0),
            Number("rms_norm_eps", 1e-5),
            Number("num_local_experts", 8.0),
            Number("num_experts_per_tok", 2.0),
        ],
        weights: &[OUTSIDE, NORMS, VALUES, PAIRS, MIXTRAL_EXPERTS],
        parameters: &[Parameter::VocabularySize, Parameter::RotaryDimensions],
        rotary: Rotary::Llama3,
        tokens: Tokens::Llama,
        ..FAMILY
    },
    Family {
        names: &["ArceeForCausalLM"],
        architecture: "arcee",
        defaults: &[
            Number("vocab_size", 32_000.0),
            Number("hidden_size", 2560.0),
            Number("intermediate_size", 18_432.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 4096.0),
            Number("rms_norm_eps", 1e-5),
            HeadDim("head_dim"),
        ],
        weights: &[OUTSIDE, NORMS, VALUES, PAIRS, PLAIN],
        parameters: &[Parameter::VocabularySize, Parameter::RotaryDimensions],
        rotary: Rotary::Llama3,
        tokens: Tokens::Llama,
        ..FAMILY
    },
    Family {
        names: &["SmolLM3ForCausalLM"],
        architecture: "smollm3",
        defaults: &[
            Number("vocab_size", 128_256.0),
            Number("hidden_size", 2048.0),
            Number("intermediate_size", 11_008.0),
            Number("num_hidden_layers", 36.0),
            Number(HEADS, 16.0),
            Number(KV_HEADS, 4.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 32_768.0),
            Number("rms_norm_eps", 1e-6),
        ],
        // Every fourth layer is without rotary embedding.
        fixed: &[("no_rope_layer_interval", Fixed::Count(4))],
        weights: &[OUTSIDE, NORMS, VALUES, PAIRS, GATED],
        parameters: &[Parameter::VocabularySize, Parameter::RotaryDimensions],
        rotary: Rotary::Llama3,
        tokens: Tokens::Llama,
        ..FAMILY
    },
    Family {
        names: &["SeedOssForCausalLM"],
        architecture: "seed_oss",
        defaults: &[
            Number("vocab_size", 155_136.0),
            Number("hidden_size", 4096.0),
            Number("intermediate_size", 27_648.0),
            Number("num_hidden_layers", 64.0),
            Number(HEADS, 80.0),
            Number(KV_HEADS, 8.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 524_288.0),
            Number("rms_norm_eps", 1e-6),
            Number("head_dim", 128.0),
        ],
        weights: &[OUTSIDE, SEED_NORMS, VALUES, HALVES, GATED],
        ..FAMILY
    },
    Family {
        names: &["Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"],
        architecture: "mistral3",
        defaults: &[
            Number("vocab_size", 131_072.0),
            Number("hidden_size", 4_096.0),
            Number("intermediate_size", 14_336.0),
            Number("num_hidden_layers", 34.0),
            Number(HEADS, 32.0),
            Number(KV_HEADS, 8.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 262_144.0),
            Number("rms_norm_eps", 1e-5),
            HeadDim("head_dim"),
        ],
        dropped: &["*vision_tower.*", "*multi_modal_projector.*"],
        weights: &[OUTSIDE, NORMS, VALUES, PAIRS, GATED],
        parameters: &[
            Parameter::VocabularySize,
            Parameter::RotaryDimensions,
            Parameter::Rotary("mscale_all_dim", "rope.scaling.yarn_log_multiplier"),
            Parameter::Rotary("llama_4_scaling_beta", "attention.temperature_scale"),
        ],
        rotary: Rotary::Llama3,
        tokens: Tokens::Llama,
        ..FAMILY
    },
];

/// The norms before attention and before the feed-forward layer, the second under another name of llama.cpp's.
const SEED_NORMS: &[Weight] = &[
    NORMS[0],
    layer!("post_attention_layernorm", "post_attention_norm", &[Hidden]),
];

/// Mixtral's experts, each a gated feed-forward layer.
pub const MIXTRAL_EXPERTS: &[Weight] = &[
    layer!("block_sparse_moe.gate", "ffn_gate_inp", &[Experts, Hidden]),
    layer!(
        "block_sparse_moe.experts.{e}.w1",
        "ffn_gate_exps",
        &[FeedForward, Hidden]
    ),
    layer!(
        "block_sparse_moe.experts.{e}.w2",
        "ffn_down_exps",
        &[Hidden, FeedForward]
    ),
    layer!(
        "block_sparse_moe.experts.{e}.w3",
        "ffn_up_exps",
        &[FeedForward, Hidden]
    ),
];
