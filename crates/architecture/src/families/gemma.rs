//! Google's Gemma.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["GemmaForCausalLM"],
        architecture: "gemma",
        defaults: &[
            Number("vocab_size", 256_000.0),
            Number("hidden_size", 3_072.0),
            Number("intermediate_size", 24_576.0),
            Number("num_hidden_layers", 28.0),
            Number(HEADS, 16.0),
            Number(KV_HEADS, 16.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 8_192.0),
            Number("rms_norm_eps", 1e-6),
            Number("head_dim", 256.0),
        ],
        dropped: &["lm_head.weight"],
        weights: &[GEMMA_OUTSIDE, GEMMA_NORMS, VALUES, HALVES, GATED],
        tokens: Tokens::Pieces,
        always: &[("tokenizer.ggml.add_space_prefix", Constant::Switch(false))],
        ..FAMILY
    },
    Family {
        names: &["Gemma2ForCausalLM"],
        architecture: "gemma2",
        defaults: &[
            Number("vocab_size", 256_000.0),
            Number("hidden_size", 2_304.0),
            Number("intermediate_size", 9_216.0),
            Number("num_hidden_layers", 26.0),
            Number(HEADS, 8.0),
            Number(KV_HEADS, 4.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 8_192.0),
            Number("rms_norm_eps", 1e-6),
            Number("head_dim", 256.0),
            Number("sliding_window", 4096.0),
            Number("final_logit_softcapping", 30.0),
            Number("attn_logit_softcapping", 50.0),
        ],
        dropped: &["lm_head.weight"],
        weights: &[GEMMA_OUTSIDE, NORMS_AROUND, VALUES, HALVES, GATED],
        parameters: &[
            Parameter::Number("attn_logit_softcapping", "attn_logit_softcapping"),
            Parameter::Number("final_logit_softcapping", "final_logit_softcapping"),
            Parameter::Window(Windows::But(2)),
        ],
        tokens: Tokens::Pieces,
        always: &[("tokenizer.ggml.add_space_prefix", Constant::Switch(false))],
        ..FAMILY
    },
    Family {
        names: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
        architecture: "gemma3",
        defaults: &[
            Number("vocab_size", 262_208.0),
            Number("hidden_size", 2_304.0),
            Number("intermediate_size", 9_216.0),
            Number("num_hidden_layers", 26.0),
            Number(HEADS, 8.0),
            Number(KV_HEADS, 4.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 131_072.0),
            Number("rms_norm_eps", 1e-6),
            Number("head_dim", 256.0),
            Number("sliding_window", 4096.0),
            Number("rope_theta", 1e6),
            Number("rope_local_base_freq", 10_000.0),
        ],
        fixed: &[("attn_logit_softcapping", Fixed::Null)],
        dropped: &[
            "lm_head.weight",
            "*vision_tower.*",
            "*multi_modal_projector.*",
        ],
        weights: &[
            GEMMA_OUTSIDE,
            NORMS_AROUND,
            VALUES,
            HALVES,
            GEMMA_HEAD_NORMS,
            GATED,
        ],
        parameters: &[
            Parameter::Window(Windows::But(6)),
            Parameter::Number("final_logit_softcapping", "final_logit_softcapping"),
        ],
        tokens: Tokens::Pieces,
        always: &[("tokenizer.ggml.add_space_prefix", Constant::Switch(false))],
        ..FAMILY
    },
];

/// A norm that multiplies by one more than its weight.
const fn one_more(weight: Weight) -> Weight {
    formed(weight, Form::PlusOne)
}

/// What stands outside the layers; the output layer reads the embedding.
const GEMMA_OUTSIDE: &[Weight] = &[OUTSIDE[0], one_more(OUTSIDE[1])];

/// The norms before attention and before the feed-forward layer.
const GEMMA_NORMS: &[Weight] = &[one_more(NORMS[0]), one_more(NORMS[1])];

/// Norms before and behind attention and the feed-forward layer.
const NORMS_AROUND: &[Weight] = &[
    one_more(NORMS[0]),
    one_more(NORMS_BEHIND[0]),
    one_more(layer!("pre_feedforward_layernorm", "ffn_norm", &[Hidden])),
    one_more(NORMS_BEHIND[1]),
];

/// Norms of Q and K within each head.
const GEMMA_HEAD_NORMS: &[Weight] = &[one_more(HEAD_NORMS[0]), one_more(HEAD_NORMS[1])];
