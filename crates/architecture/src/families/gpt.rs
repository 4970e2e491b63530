//! Families with layer norms, as GPT-2 has them.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["Starcoder2ForCausalLM"],
        architecture: "starcoder2",
        defaults: &[
            Number("vocab_size", 49_152.0),
            Number("hidden_size", 3072.0),
            Number("intermediate_size", 12_288.0),
            Number("num_hidden_layers", 30.0),
            Number(HEADS, 24.0),
            Number(KV_HEADS, 2.0),
            Number("max_position_embeddings", 4096.0),
            Number("norm_epsilon", 1e-5),
        ],
        weights: &[LAYER_NORMS, VALUES, HALVES, STARCODER_PLAIN],
        ..FAMILY
    },
    Family {
        names: &["StableLmForCausalLM"],
        architecture: "stablelm",
        defaults: &[
            Number("vocab_size", 50_304.0),
            Number("hidden_size", 2_560.0),
            Number("intermediate_size", 6_912.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 32.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 4_096.0),
            Number("layer_norm_eps", 1e-5),
            Number("partial_rotary_factor", 0.25),
        ],
        fixed: &[("qk_layernorm", Fixed::False)],
        weights: &[STABLE_NORMS, VALUES, HALVES, GATED],
        parameters: &[
            Parameter::PartialRotary,
            Parameter::Switch("use_parallel_residual", "use_parallel_residual"),
        ],
        ..FAMILY
    },
    Family {
        names: &["NemotronForCausalLM"],
        architecture: "nemotron",
        defaults: &[
            Number("vocab_size", 256_000.0),
            Number("hidden_size", 6_144.0),
            Number("intermediate_size", 24_576.0),
            Number("num_hidden_layers", 32.0),
            Number(HEADS, 48.0),
            Same(KV_HEADS, HEADS),
            Number("max_position_embeddings", 4_096.0),
            Number("norm_eps", 1e-5),
            Number("partial_rotary_factor", 0.5),
            Number("head_dim", 128.0),
            Same("layer_norm_eps", "norm_eps"),
        ],
        weights: &[NEMOTRON_NORMS, VALUES, HALVES, PLAIN],
        parameters: &[
            Parameter::VocabularySize,
            Parameter::PartialRotary,
            Parameter::NoRopeScaling,
        ],
        tokens: Tokens::Qwen,
        ..FAMILY
    },
    Family {
        names: &["GPT2LMHeadModel"],
        architecture: "gpt2",
        tokens: Tokens::Gpt2,
        defaults: &[
            Number("vocab_size", 50_257.0),
            Number("n_embd", 768.0),
            Same("hidden_size", "n_embd"),
            Same("intermediate_size", "n_inner"),
            Times("intermediate_size", "hidden_size", 4),
            Number("n_layer", 12.0),
            Same("num_hidden_layers", "n_layer"),
            Number("n_head", 12.0),
            Same(HEADS, "n_head"),
            Number("n_positions", 1024.0),
            Same("max_position_embeddings", "n_positions"),
            Number("layer_norm_epsilon", 1e-5),
        ],
        dropped: &["*.attn.bias", "*.attn.masked_bias", "lm_head.weight"],
        weights: &[GPT2],
        rotary: Rotary::None,
        ..FAMILY
    },
    Family {
        names: &["GPTNeoForCausalLM"],
        architecture: "gpt2",
        tokens: Tokens::Gpt2,
        defaults: &[
            Number("vocab_size", 50_257.0),
            Number("hidden_size", 2048.0),
            Times("intermediate_size", "hidden_size", 4),
            Number("num_layers", 24.0),
            Same("num_hidden_layers", "num_layers"),
            Number("num_heads", 16.0),
            Same(HEADS, "num_heads"),
            Number("max_position_embeddings", 2048.0),
            Number("layer_norm_epsilon", 1e-5),
            Number("window_size", 256.0),
        ],
        dropped: &[
            "*.attn.attention.bias",
            "*.attn.attention.masked_bias",
            "lm_head.weight",
        ],
        weights: &[NEO],
        parameters: &[Parameter::Window(Windows::Neo)],
        rotary: Rotary::None,
        remark: Some(
            "every second layer of a GPT-Neo looks at a window (256 tokens in all that were released), and at \
             everything in llama.cpp: the file is exact in contexts that are no longer",
        ),
        ..FAMILY
    },
    Family {
        names: &["GPTNeoXForCausalLM"],
        architecture: "gptneox",
        defaults: &[
            Number("vocab_size", 50_432.0),
            Number("hidden_size", 6_144.0),
            Number("intermediate_size", 24_576.0),
            Number("num_hidden_layers", 44.0),
            Number(HEADS, 64.0),
            Number("max_position_embeddings", 2_048.0),
            Number("layer_norm_eps", 1e-5),
            Number("rotary_pct", 0.25),
        ],
        dropped: &[
            "*.attention.bias",
            "*.attention.masked_bias",
            "*.rotary_emb.inv_freq",
        ],
        weights: &[NEOX],
        parameters: &[
            Parameter::PartialRotary,
            Parameter::Switch("use_parallel_residual", "use_parallel_residual"),
        ],
        ..FAMILY
    },
    Family {
        names: &["BloomForCausalLM"],
        architecture: "bloom",
        defaults: &[
            Number("vocab_size", 250_880.0),
            Same("hidden_size", "n_embed"),
            Number("hidden_size", 64.0),
            Times("intermediate_size", "hidden_size", 4),
            Number("n_layer", 2.0),
            Same("num_hidden_layers", "n_layer"),
            Number("n_head", 8.0),
            Same(HEADS, "n_head"),
            Same(KV_HEADS, HEADS),
            Number("seq_length", 2048.0),
            Same("max_position_embeddings", "seq_length"),
            Number("layer_norm_epsilon", 1e-5),
        ],
        dropped: &["lm_head.weight"],
        weights: &[BLOOM],
        rotary: Rotary::None,
        ..FAMILY
    },
    Family {
        names: &["FalconForCausalLM"],
        architecture: "falcon",
        defaults: &[
            Number("vocab_size", 65_024.0),
            Number("hidden_size", 4544.0),
            Times("intermediate_size", "hidden_size", 4),
            Number("num_hidden_layers", 32.0),
            Same(HEADS, "n_head"),
            Number(HEADS, 71.0),
            Same(KV_HEADS, "num_kv_heads"),
            Same(KV_HEADS, "n_head_kv"),
            Number(KV_HEADS, 1.0),
            Number("max_position_embeddings", 2048.0),
            Number("layer_norm_epsilon", 1e-5),
        ],
        fixed: &[("alibi", Fixed::False), ("parallel_attn", Fixed::True)],
        dropped: &["lm_head.weight"],
        weights: &[FALCON],
        always: &[("falcon.tensor_data_layout", Constant::Text("jploski"))],
        ..FAMILY
    },
];

/// The same under StarCoder's names.
const STARCODER_PLAIN: &[Weight] = &[
    layer!("mlp.c_fc", "ffn_up", &[FeedForward, Hidden]),
    layer!("mlp.c_proj", "ffn_down", &[Hidden, FeedForward]),
];

/// As [`LAYER_NORMS`]; a model that computes attention and the feed-forward layer side by side has one norm.
const STABLE_NORMS: &[Weight] = &[
    LAYER_NORMS[0],
    LAYER_NORMS[1],
    LAYER_NORMS[2],
    LAYER_NORMS[3],
    optional(LAYER_NORMS[4]),
];

/// As [`LAYER_NORMS`], which multiply by one more than their weights.
const NEMOTRON_NORMS: &[Weight] = &[
    LAYER_NORMS[0],
    formed(LAYER_NORMS[1], Form::PlusOne),
    LAYER_NORMS[2],
    formed(LAYER_NORMS[3], Form::PlusOne),
    formed(LAYER_NORMS[4], Form::PlusOne),
];

const fn transposed(weight: Weight) -> Weight {
    formed(weight, Form::Transposed)
}

/// GPT-2's weights, matrices with rows for columns.
const GPT2: &[Weight] = &[
    weight("transformer.wte", "token_embd", &[Vocabulary, Hidden]),
    weight("transformer.wpe", "position_embd", &[Positions, Hidden]),
    shifting(weight("transformer.ln_f", "output_norm", &[Hidden])),
    shifting(weight(
        "transformer.h.{}.ln_1",
        "blk.{}.attn_norm",
        &[Hidden],
    )),
    shifting(weight(
        "transformer.h.{}.ln_2",
        "blk.{}.ffn_norm",
        &[Hidden],
    )),
    transposed(weight(
        "transformer.h.{}.attn.c_attn",
        "blk.{}.attn_qkv",
        &[QueryKeyValue, Hidden],
    )),
    transposed(weight(
        "transformer.h.{}.attn.c_proj",
        "blk.{}.attn_output",
        &[Hidden, Query],
    )),
    transposed(weight(
        "transformer.h.{}.mlp.c_fc",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    )),
    transposed(weight(
        "transformer.h.{}.mlp.c_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    )),
];

/// A third of Q, K and V.
const fn third(source: &'static str, part: usize) -> Weight {
    formed(
        weight(source, "blk.{}.attn_qkv", &[Query, Hidden]),
        Form::Third(part),
    )
}

/// GPT-Neo's weights as GPT-2's.
const NEO: &[Weight] = &[
    GPT2[0],
    GPT2[1],
    GPT2[2],
    GPT2[3],
    GPT2[4],
    third("transformer.h.{}.attn.attention.q_proj", 0),
    third("transformer.h.{}.attn.attention.k_proj", 1),
    third("transformer.h.{}.attn.attention.v_proj", 2),
    weight(
        "transformer.h.{}.attn.attention.out_proj",
        "blk.{}.attn_output",
        &[Hidden, Query],
    ),
    weight(
        "transformer.h.{}.mlp.c_fc",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    weight(
        "transformer.h.{}.mlp.c_proj",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
];

/// GPT-NeoX's weights.
const NEOX: &[Weight] = &[
    weight("gpt_neox.embed_in", "token_embd", &[Vocabulary, Hidden]),
    shifting(weight(
        "gpt_neox.final_layer_norm",
        "output_norm",
        &[Hidden],
    )),
    weight("embed_out", "output", &[Vocabulary, Hidden]),
    shifting(weight(
        "gpt_neox.layers.{}.input_layernorm",
        "blk.{}.attn_norm",
        &[Hidden],
    )),
    shifting(weight(
        "gpt_neox.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    )),
    formed(
        weight(
            "gpt_neox.layers.{}.attention.query_key_value",
            "blk.{}.attn_qkv",
            &[QueryKeyValue, Hidden],
        ),
        Form::Grouped,
    ),
    weight(
        "gpt_neox.layers.{}.attention.dense",
        "blk.{}.attn_output",
        &[Hidden, Query],
    ),
    weight(
        "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "blk.{}.ffn_up",
        &[FeedForward, Hidden],
    ),
    weight(
        "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "blk.{}.ffn_down",
        &[Hidden, FeedForward],
    ),
];

const BLOOM_NORM: Weight = shifting(weight(
    "transformer.h.{}.input_layernorm",
    "blk.{}.attn_norm",
    &[Hidden],
));
const BLOOM_QKV: Weight = formed(
    weight(
        "transformer.h.{}.self_attention.query_key_value",
        "blk.{}.attn_qkv",
        &[QueryKeyValue, Hidden],
    ),
    Form::Grouped,
);
const BLOOM_OUTPUT: Weight = weight(
    "transformer.h.{}.self_attention.dense",
    "blk.{}.attn_output",
    &[Hidden, Query],
);
const BLOOM_UP: Weight = weight(
    "transformer.h.{}.mlp.dense_h_to_4h",
    "blk.{}.ffn_up",
    &[FeedForward, Hidden],
);
const BLOOM_DOWN: Weight = weight(
    "transformer.h.{}.mlp.dense_4h_to_h",
    "blk.{}.ffn_down",
    &[Hidden, FeedForward],
);

/// BLOOM's weights.
const BLOOM: &[Weight] = &[
    weight(
        "transformer.word_embeddings",
        "token_embd",
        &[Vocabulary, Hidden],
    ),
    shifting(weight(
        "transformer.word_embeddings_layernorm",
        "token_embd_norm",
        &[Hidden],
    )),
    shifting(weight("transformer.ln_f", "output_norm", &[Hidden])),
    BLOOM_NORM,
    shifting(weight(
        "transformer.h.{}.post_attention_layernorm",
        "blk.{}.ffn_norm",
        &[Hidden],
    )),
    BLOOM_QKV,
    BLOOM_OUTPUT,
    BLOOM_UP,
    BLOOM_DOWN,
];

/// Falcon's weights: one norm, or one for attention and one for the feed-forward layer.
const FALCON: &[Weight] = &[
    weight(
        "transformer.word_embeddings",
        "token_embd",
        &[Vocabulary, Hidden],
    ),
    shifting(weight("transformer.ln_f", "output_norm", &[Hidden])),
    optional(BLOOM_NORM),
    optional(shifting(weight(
        "transformer.h.{}.ln_attn",
        "blk.{}.attn_norm_2",
        &[Hidden],
    ))),
    optional(shifting(weight(
        "transformer.h.{}.ln_mlp",
        "blk.{}.attn_norm",
        &[Hidden],
    ))),
    BLOOM_QKV,
    BLOOM_OUTPUT,
    BLOOM_UP,
    BLOOM_DOWN,
];
