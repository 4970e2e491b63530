//! Alibaba's Qwen.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["Qwen2ForCausalLM", "Qwen2Model"],
        architecture: "qwen2",
        defaults: &[
            Number("vocab_size", 151_936.0),
            Number("hidden_size", 4096.0),
            Number("intermediate_size", 22_016.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Number(KV_HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 32_768.0),
            Number("rms_norm_eps", 1e-6),
        ],
        weights: &[OUTSIDE, NORMS, VALUES, HALVES, GATED],
        parameters: &[Parameter::Pooling],
        tokens: Tokens::Qwen,
        ..FAMILY
    },
    Family {
        names: &["Qwen3ForCausalLM", "Qwen3Model"],
        architecture: "qwen3",
        defaults: &[
            Number("vocab_size", 151_936.0),
            Number("hidden_size", 4096.0),
            Number("intermediate_size", 22_016.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Number(KV_HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("head_dim", 128.0),
            Number("max_position_embeddings", 32_768.0),
            Number("rms_norm_eps", 1e-6),
        ],
        weights: &[OUTSIDE, NORMS, VALUES, HALVES, HEAD_NORMS, GATED],
        parameters: &[Parameter::Pooling],
        tokens: Tokens::Qwen,
        ..FAMILY
    },
    Family {
        names: &["Qwen3MoeForCausalLM"],
        architecture: "qwen3moe",
        defaults: &[
            Number("vocab_size", 151_936.0),
            Number("hidden_size", 2048.0),
            Number("intermediate_size", 6144.0),
            Number("num_hidden_layers", 24.0),
            Number(HEADS, 32.0),
            Number(KV_HEADS, 4.0),
            Number("max_position_embeddings", 32_768.0),
            Number("rms_norm_eps", 1e-6),
            Number("num_experts", 128.0),
            Number("num_experts_per_tok", 8.0),
            Number("moe_intermediate_size", 768.0),
        ],
        weights: &[OUTSIDE, NORMS, VALUES, HALVES, HEAD_NORMS, EXPERTS],
        parameters: &[Parameter::Count(
            "moe_intermediate_size",
            "expert_feed_forward_length",
        )],
        ..FAMILY
    },
    Family {
        names: &["Qwen2MoeForCausalLM"],
        architecture: "qwen2moe",
        defaults: &[
            Number("vocab_size", 151_936.0),
            Number("hidden_size", 2048.0),
            Number("intermediate_size", 5632.0),
            Number("num_hidden_layers", 24.0),
            Number(HEADS, 16.0),
            Number(KV_HEADS, 16.0),
            Number("max_position_embeddings", 32_768.0),
            Number("rms_norm_eps", 1e-6),
            Number("num_experts", 60.0),
            Number("num_experts_per_tok", 4.0),
            Number("moe_intermediate_size", 1408.0),
            Number("shared_expert_intermediate_size", 5632.0),
        ],
        fixed: &[("norm_topk_prob", Fixed::False)],
        weights: &[OUTSIDE, NORMS, VALUES, HALVES, EXPERTS, SHARED_EXPERT],
        parameters: &[
            Parameter::Count("moe_intermediate_size", "expert_feed_forward_length"),
            Parameter::Count(
                "shared_expert_intermediate_size",
                "expert_shared_feed_forward_length",
            ),
        ],
        tokens: Tokens::Qwen,
        ..FAMILY
    },
    Family {
        names: &[
            "Qwen2VLForConditionalGeneration",
            "Qwen2_5_VLForConditionalGeneration",
        ],
        architecture: "qwen2vl",
        defaults: &[
            Number("vocab_size", 152_064.0),
            Number("hidden_size", 8_192.0),
            Number("intermediate_size", 29_568.0),
            Number("num_hidden_layers", 80.0),
            Number(HEADS, 64.0),
            Number(KV_HEADS, 8.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 32_768.0),
            Number("rms_norm_eps", 1e-5),
            Number("rope_theta", 1e6),
        ],
        dropped: &["visual.*", "model.visual.*"],
        weights: &[OUTSIDE, NORMS, VALUES, HALVES, GATED],
        parameters: &[Parameter::Sections],
        tokens: Tokens::Qwen,
        ..FAMILY
    },
    Family {
        names: &["Qwen3VLForConditionalGeneration"],
        architecture: "qwen3vl",
        defaults: &[
            Number("vocab_size", 151_936.0),
            Number("hidden_size", 4_096.0),
            Number("intermediate_size", 22_016.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Number(KV_HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 128_000.0),
            Number("rms_norm_eps", 1e-6),
            Number("head_dim", 128.0),
            Number("rope_theta", 500_000.0),
        ],
        dropped: &["visual.*", "model.visual.*"],
        weights: &[OUTSIDE, NORMS, VALUES, HALVES, HEAD_NORMS, GATED],
        parameters: &[Parameter::Sections, Parameter::Deepstack],
        tokens: Tokens::Qwen,
        ..FAMILY
    },
];

/// A gated feed-forward layer that all tokens share, beside the experts.
pub const SHARED_EXPERT: &[Weight] = &[
    layer!(
        "mlp.shared_expert_gate",
        "ffn_gate_inp_shexp",
        &[One, Hidden]
    ),
    layer!(
        "mlp.shared_expert.gate_proj",
        "ffn_gate_shexp",
        &[SharedFeedForward, Hidden]
    ),
    layer!(
        "mlp.shared_expert.up_proj",
        "ffn_up_shexp",
        &[SharedFeedForward, Hidden]
    ),
    layer!(
        "mlp.shared_expert.down_proj",
        "ffn_down_shexp",
        &[Hidden, SharedFeedForward]
    ),
];
