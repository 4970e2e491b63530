//! Encoders: BERT and its kin.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["BertModel", "BertForMaskedLM", "BertForPreTraining"],
        tokens: Tokens::WordPiece,
        ..BERT
    },
    Family {
        names: &["DistilBertModel", "DistilBertForMaskedLM"],
        defaults: &[
            Number("vocab_size", 30_522.0),
            Number("max_position_embeddings", 512.0),
            Number("dim", 768.0),
            Number("hidden_dim", 3072.0),
            Number("n_layers", 6.0),
            Number("n_heads", 12.0),
            Number("layer_norm_eps", 1e-12),
            Same("hidden_size", "dim"),
            Same("intermediate_size", "hidden_dim"),
            Same("num_hidden_layers", "n_layers"),
            Same(HEADS, "n_heads"),
        ],
        fixed: &[("activation", Fixed::Text("gelu"))],
        weights: &[DISTILBERT],
        dropped: &["vocab_*"],
        tokens: Tokens::WordPiece,
        ..BERT
    },
    Family {
        names: &["RobertaModel", "RobertaForMaskedLM"],
        tokens: Tokens::Bpe,
        ..ROBERTA
    },
    Family {
        names: &[
            "XLMRobertaModel",
            "XLMRobertaForMaskedLM",
            "CamembertModel",
            "CamembertForMaskedLM",
        ],
        tokens: Tokens::Unigram,
        ..ROBERTA
    },
];

const BERT: Family = Family {
    architecture: "bert",
    defaults: &[
        Number("vocab_size", 30_522.0),
        Number("hidden_size", 768.0),
        Number("intermediate_size", 3072.0),
        Number("num_hidden_layers", 12.0),
        Number(HEADS, 12.0),
        Number("max_position_embeddings", 512.0),
        Number("type_vocab_size", 2.0),
        Number("layer_norm_eps", 1e-12),
    ],
    fixed: &[
        ("hidden_act", Fixed::Text("gelu")),
        ("position_embedding_type", Fixed::Text("absolute")),
        ("is_decoder", Fixed::False),
    ],
    weights: &[&[POSITIONS], ENCODER],
    dropped: &["*pooler.dense.*", "cls.*"],
    parameters: &[Parameter::Pooling, Parameter::TokenTypes],
    rotary: Rotary::None,
    encodes: true,
    always: &[("bert.attention.causal", Constant::Switch(false))],
    ..FAMILY
};

/// The positions that lead, up to the padding token's, stand for nothing.
const ROBERTA: Family = Family {
    defaults: &[
        Number("vocab_size", 50_265.0),
        Number("hidden_size", 768.0),
        Number("intermediate_size", 3072.0),
        Number("num_hidden_layers", 12.0),
        Number(HEADS, 12.0),
        Number("max_position_embeddings", 512.0),
        Number("type_vocab_size", 2.0),
        Number("layer_norm_eps", 1e-12),
        Number("pad_token_id", 1.0),
    ],
    weights: &[ROBERTA_POSITIONS, ENCODER],
    dropped: &["*pooler.dense.*", "lm_head.*"],
    parameters: &[
        Parameter::Pooling,
        Parameter::TokenTypes,
        Parameter::PositionsBehindPadding,
    ],
    ..BERT
};

const TOKENS: Weight = weight(
    "embeddings.word_embeddings",
    "token_embd",
    &[Vocabulary, Hidden],
);
const POSITIONS: Weight = weight(
    "embeddings.position_embeddings",
    "position_embd",
    &[Positions, Hidden],
);
const TYPES: Weight = weight(
    "embeddings.token_type_embeddings",
    "token_types",
    &[TokenTypes, Hidden],
);
const NORM: Weight = shifting(weight("embeddings.LayerNorm", "token_embd_norm", &[Hidden]));

const ROBERTA_POSITIONS: &[Weight] = &[formed(POSITIONS, Form::BehindPadding)];

/// All but the positions.
const ENCODER: &[Weight] = &[
    TOKENS,
    TYPES,
    NORM,
    QUERY,
    KEY,
    VALUE,
    OUTPUT,
    OUTPUT_NORM,
    UP,
    DOWN,
    LAST_NORM,
];

/// A weight of each layer, by what all names of a family's layers begin with.
macro_rules! encoder {
    ($layers:literal, $source:literal, $target:literal, $shape:expr) => {
        weight(
            concat!($layers, ".layer.{}.", $source),
            concat!("blk.{}.", $target),
            $shape,
        )
    };
}

const QUERY: Weight = encoder!(
    "encoder",
    "attention.self.query",
    "attn_q",
    &[Query, Hidden]
);
const KEY: Weight = encoder!("encoder", "attention.self.key", "attn_k", &[Query, Hidden]);
const VALUE: Weight = encoder!(
    "encoder",
    "attention.self.value",
    "attn_v",
    &[Query, Hidden]
);
const OUTPUT: Weight = encoder!(
    "encoder",
    "attention.output.dense",
    "attn_output",
    &[Hidden, Query]
);
const OUTPUT_NORM: Weight = shifting(encoder!(
    "encoder",
    "attention.output.LayerNorm",
    "attn_output_norm",
    &[Hidden]
));
const UP: Weight = encoder!(
    "encoder",
    "intermediate.dense",
    "ffn_up",
    &[FeedForward, Hidden]
);
const DOWN: Weight = encoder!(
    "encoder",
    "output.dense",
    "ffn_down",
    &[Hidden, FeedForward]
);
const LAST_NORM: Weight = shifting(encoder!(
    "encoder",
    "output.LayerNorm",
    "layer_output_norm",
    &[Hidden]
));

const DISTILBERT: &[Weight] = &[
    TOKENS,
    POSITIONS,
    NORM,
    encoder!("transformer", "attention.q_lin", "attn_q", &[Query, Hidden]),
    encoder!("transformer", "attention.k_lin", "attn_k", &[Query, Hidden]),
    encoder!("transformer", "attention.v_lin", "attn_v", &[Query, Hidden]),
    encoder!(
        "transformer",
        "attention.out_lin",
        "attn_output",
        &[Hidden, Query]
    ),
    shifting(encoder!(
        "transformer",
        "sa_layer_norm",
        "attn_output_norm",
        &[Hidden]
    )),
    encoder!("transformer", "ffn.lin1", "ffn_up", &[FeedForward, Hidden]),
    encoder!(
        "transformer",
        "ffn.lin2",
        "ffn_down",
        &[Hidden, FeedForward]
    ),
    shifting(encoder!(
        "transformer",
        "output_layer_norm",
        "layer_output_norm",
        &[Hidden]
    )),
];
