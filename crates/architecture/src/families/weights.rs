//! The weights that families have, in groups that several of them share.

use super::{Dim, Form, Heads, Layers, Weight};
use Dim::*;

pub const fn weight(source: &'static str, target: &'static str, shape: &'static [Dim]) -> Weight {
    Weight {
        source,
        target,
        shape,
        form: Form::Whole,
        optional: false,
        shifts: false,
        named: false,
        layers: Layers::All,
    }
}

/// A weight of each layer of what most checkpoints call `model`.
macro_rules! layer {
    ($source:literal, $target:literal, $shape:expr) => {
        weight(
            concat!("model.layers.{}.", $source),
            concat!("blk.{}.", $target),
            $shape,
        )
    };
}
pub(super) use layer;

/// A norm that shifts, as layer norms do.
pub const fn shifting(weight: Weight) -> Weight {
    Weight {
        shifts: true,
        ..weight
    }
}

pub const fn optional(weight: Weight) -> Weight {
    Weight {
        optional: true,
        ..weight
    }
}

pub const fn formed(weight: Weight, form: Form) -> Weight {
    Weight { form, ..weight }
}

/// A weight whose names are whole.
pub const fn named(weight: Weight) -> Weight {
    Weight {
        named: true,
        ..weight
    }
}

/// A weight of some of the layers.
pub const fn only(weight: Weight, layers: Layers) -> Weight {
    Weight { layers, ..weight }
}

/// What stands outside the layers.
pub const OUTSIDE: &[Weight] = &[
    weight("model.embed_tokens", "token_embd", &[Vocabulary, Hidden]),
    weight("model.norm", "output_norm", &[Hidden]),
    HEAD,
];

pub const HEAD: Weight = optional(weight("lm_head", "output", &[Vocabulary, Hidden]));

/// The norms before attention and before the feed-forward layer.
pub const NORMS: &[Weight] = &[
    layer!("input_layernorm", "attn_norm", &[Hidden]),
    layer!("post_attention_layernorm", "ffn_norm", &[Hidden]),
];

/// The norms behind attention and behind the feed-forward layer.
pub const NORMS_BEHIND: &[Weight] = &[
    layer!("post_attention_layernorm", "post_attention_norm", &[Hidden]),
    layer!("post_feedforward_layernorm", "post_ffw_norm", &[Hidden]),
];

/// V and the output of attention.
pub const VALUES: &[Weight] = &[
    layer!("self_attn.v_proj", "attn_v", &[KeyValue, Hidden]),
    layer!("self_attn.o_proj", "attn_output", &[Hidden, Query]),
];

const QUERY: Weight = layer!("self_attn.q_proj", "attn_q", &[Query, Hidden]);
const KEY: Weight = layer!("self_attn.k_proj", "attn_k", &[KeyValue, Hidden]);

/// Q and K as they are: the model rotates halves.
pub const HALVES: &[Weight] = &[QUERY, KEY];

/// Q and K reordered: the model rotates pairs.
pub const PAIRS: &[Weight] = &[
    formed(QUERY, Form::Pairs(Heads::Query)),
    formed(KEY, Form::Pairs(Heads::KeyValue)),
];

/// Q, K and V in one matrix.
pub const FUSED: &[Weight] = &[
    layer!("self_attn.qkv_proj", "attn_qkv", &[QueryKeyValue, Hidden]),
    VALUES[1],
];

/// A gated feed-forward layer, the gate and what it gates in one matrix.
pub const GATED_TOGETHER: &[Weight] = &[
    layer!("mlp.gate_up_proj", "ffn_up", &[TwiceFeedForward, Hidden]),
    GATED[2],
];

/// Norms of Q and K within each head.
pub const HEAD_NORMS: &[Weight] = &[
    layer!("self_attn.q_norm", "attn_q_norm", &[Head]),
    layer!("self_attn.k_norm", "attn_k_norm", &[Head]),
];

/// A gated feed-forward layer.
pub const GATED: &[Weight] = &[
    layer!("mlp.gate_proj", "ffn_gate", &[FeedForward, Hidden]),
    layer!("mlp.up_proj", "ffn_up", &[FeedForward, Hidden]),
    layer!("mlp.down_proj", "ffn_down", &[Hidden, FeedForward]),
];

/// What stands outside the layers, and the norms in them, with norms that shift.
pub const LAYER_NORMS: &[Weight] = &[
    OUTSIDE[0],
    shifting(OUTSIDE[1]),
    HEAD,
    shifting(NORMS[0]),
    shifting(NORMS[1]),
];

/// A feed-forward layer without a gate.
pub const PLAIN: &[Weight] = &[GATED[1], GATED[2]];

/// Experts, as most families name them.
pub const EXPERTS: &[Weight] = &[
    layer!("mlp.gate", "ffn_gate_inp", &[Experts, Hidden]),
    layer!(
        "mlp.experts.{e}.down_proj",
        "ffn_down_exps",
        &[Hidden, ExpertFeedForward]
    ),
    layer!(
        "mlp.experts.{e}.gate_proj",
        "ffn_gate_exps",
        &[ExpertFeedForward, Hidden]
    ),
    layer!(
        "mlp.experts.{e}.up_proj",
        "ffn_up_exps",
        &[ExpertFeedForward, Hidden]
    ),
];

/// A gated feed-forward layer in the leading layers.
pub const LEADING_GATED: &[Weight] = &[
    only(GATED[0], Layers::Leading),
    only(GATED[1], Layers::Leading),
    only(GATED[2], Layers::Leading),
];

/// Experts behind the leading layers, some of which all tokens share, chosen with a correction.
pub const BEHIND_EXPERTS: &[Weight] = &[
    only(EXPERTS[0], Layers::Behind),
    only(EXPERTS[1], Layers::Behind),
    only(EXPERTS[2], Layers::Behind),
    only(EXPERTS[3], Layers::Behind),
    only(
        named(layer!(
            "mlp.gate.e_score_correction_bias",
            "exp_probs_b.bias",
            &[Experts]
        )),
        Layers::Behind,
    ),
    only(
        layer!(
            "mlp.shared_experts.gate_proj",
            "ffn_gate_shexp",
            &[SharedFeedForward, Hidden]
        ),
        Layers::Behind,
    ),
    only(
        layer!(
            "mlp.shared_experts.up_proj",
            "ffn_up_shexp",
            &[SharedFeedForward, Hidden]
        ),
        Layers::Behind,
    ),
    only(
        layer!(
            "mlp.shared_experts.down_proj",
            "ffn_down_shexp",
            &[Hidden, SharedFeedForward]
        ),
        Layers::Behind,
    ),
];
