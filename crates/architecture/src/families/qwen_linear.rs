//! Alibaba's Qwen3-Next and Qwen3.5, most of whose layers are of linear attention (gated delta nets).

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

pub const ALL: &[Family] = &[
    Family {
        names: &["Qwen3NextForCausalLM"],
        architecture: "qwen3next",
        defaults: DEFAULTS,
        dropped: &["mtp.*", "model.mtp.*"],
        weights: &[
            OUTSIDE_PLUS_ONE,
            BOTH,
            ATTENDING,
            GROUPED_LINEAR,
            EXPERTS,
            qwen::SHARED_EXPERT,
        ],
        parameters: WITH_EXPERTS,
        tokens: Tokens::Qwen,
        ..FAMILY
    },
    Family {
        names: &["Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"],
        architecture: "qwen35",
        defaults: DEFAULTS,
        dropped: SEEING,
        weights: &[OUTSIDE_PLUS_ONE, BOTH, ATTENDING, LINEAR, GATED],
        parameters: &[
            Parameter::Sections,
            Parameter::LinearAttention,
            Parameter::PartialRotary,
        ],
        tokens: Tokens::Qwen,
        ..FAMILY
    },
    Family {
        names: &[
            "Qwen3_5MoeForConditionalGeneration",
            "Qwen3_5MoeForCausalLM",
        ],
        architecture: "qwen35moe",
        defaults: DEFAULTS,
        dropped: SEEING,
        weights: &[
            OUTSIDE_PLUS_ONE,
            BOTH,
            ATTENDING,
            LINEAR,
            EXPERTS,
            STACKED,
            qwen::SHARED_EXPERT,
        ],
        parameters: &[
            Parameter::Sections,
            WITH_EXPERTS[0],
            WITH_EXPERTS[1],
            WITH_EXPERTS[2],
            WITH_EXPERTS[3],
        ],
        tokens: Tokens::Qwen,
        ..FAMILY
    },
];

const SEEING: &[&str] = &["visual.*", "model.visual.*", "mtp.*", "model.mtp.*"];

const DEFAULTS: &[Default] = &[
    Number("vocab_size", 151_936.0),
    Number("hidden_size", 2048.0),
    Number("intermediate_size", 5632.0),
    Number("num_hidden_layers", 48.0),
    Number(HEADS, 16.0),
    Number(KV_HEADS, 2.0),
    Number("head_dim", 256.0),
    Number("max_position_embeddings", 32_768.0),
    Number("rms_norm_eps", 1e-6),
    Number("linear_conv_kernel_dim", 4.0),
    Number("linear_key_head_dim", 128.0),
    Number("linear_value_head_dim", 128.0),
    Number("linear_num_key_heads", 16.0),
    Number("linear_num_value_heads", 32.0),
    Number("full_attention_interval", 4.0),
    Number("partial_rotary_factor", 0.25),
];

const WITH_EXPERTS: &[Parameter] = &[
    Parameter::Count("moe_intermediate_size", "expert_feed_forward_length"),
    Parameter::Count(
        "shared_expert_intermediate_size",
        "expert_shared_feed_forward_length",
    ),
    Parameter::LinearAttention,
    Parameter::PartialRotary,
];

const OUTSIDE_PLUS_ONE: &[Weight] = &[OUTSIDE[0], formed(OUTSIDE[1], Form::PlusOne), HEAD];

/// What every layer has.
const BOTH: &[Weight] = &[
    formed(NORMS[0], Form::PlusOne),
    formed(
        layer!("post_attention_layernorm", "post_attention_norm", &[Hidden]),
        Form::PlusOne,
    ),
];

/// Attention to everything. Q has a gate beside it.
const ATTENDING: &[Weight] = &[
    only(
        layer!("self_attn.q_proj", "attn_q", &[QueryAndGate, Hidden]),
        Layers::Attending,
    ),
    only(HALVES[1], Layers::Attending),
    only(VALUES[0], Layers::Attending),
    only(VALUES[1], Layers::Attending),
    only(formed(HEAD_NORMS[0], Form::PlusOne), Layers::Attending),
    only(formed(HEAD_NORMS[1], Form::PlusOne), Layers::Attending),
];

const fn linear(weight: Weight, form: LinearForm) -> Weight {
    only(formed(weight, Form::Linear(form)), Layers::Linear)
}

const OUT: Weight = layer!(
    "linear_attn.out_proj",
    "ssm_out",
    &[Hidden, Linear(LinearDim::Values)]
);
const NORM: Weight = layer!(
    "linear_attn.norm",
    "ssm_norm",
    &[Linear(LinearDim::ValueHead)]
);
const CONVOLUTION: Weight = layer!(
    "linear_attn.conv1d",
    "ssm_conv1d",
    &[Linear(LinearDim::Mixed), Linear(LinearDim::Kernel)]
);
const DECAY: Weight = named(layer!(
    "linear_attn.A_log",
    "ssm_a",
    &[Linear(LinearDim::ValueHeads)]
));
const TIME_STEP: Weight = named(layer!(
    "linear_attn.dt_bias",
    "ssm_dt.bias",
    &[Linear(LinearDim::ValueHeads)]
));

/// Linear attention whose heads of values llama.cpp has in turns.
const LINEAR: &[Weight] = &[
    linear(
        layer!(
            "linear_attn.in_proj_qkv",
            "attn_qkv",
            &[Linear(LinearDim::Mixed), Hidden]
        ),
        LinearForm::TurnsBehind,
    ),
    linear(
        layer!(
            "linear_attn.in_proj_z",
            "attn_gate",
            &[Linear(LinearDim::Values), Hidden]
        ),
        LinearForm::Turns(Each::Dimension),
    ),
    linear(
        layer!(
            "linear_attn.in_proj_a",
            "ssm_alpha",
            &[Linear(LinearDim::ValueHeads), Hidden]
        ),
        LinearForm::Turns(Each::One),
    ),
    linear(
        layer!(
            "linear_attn.in_proj_b",
            "ssm_beta",
            &[Linear(LinearDim::ValueHeads), Hidden]
        ),
        LinearForm::Turns(Each::One),
    ),
    linear(CONVOLUTION, LinearForm::ConvolutionTurnsBehind),
    linear(DECAY, LinearForm::DecaysInTurns),
    linear(TIME_STEP, LinearForm::Turns(Each::One)),
    only(NORM, Layers::Linear),
    linear(OUT, LinearForm::ColumnsInTurns),
];

/// Linear attention whose heads of values stay with their keys.
const GROUPED_LINEAR: &[Weight] = &[
    linear(
        layer!(
            "linear_attn.in_proj_qkvz",
            "attn_qkv",
            &[Linear(LinearDim::Mixed), Hidden]
        ),
        LinearForm::Ungrouped,
    ),
    linear(
        layer!(
            "linear_attn.in_proj_qkvz",
            "attn_gate",
            &[Linear(LinearDim::Values), Hidden]
        ),
        LinearForm::UngroupedGate,
    ),
    only(
        layer!(
            "linear_attn.in_proj_ba",
            "ssm_ba",
            &[Linear(LinearDim::TwiceValueHeads), Hidden]
        ),
        Layers::Linear,
    ),
    linear(CONVOLUTION, LinearForm::Convolution),
    linear(DECAY, LinearForm::Decays),
    only(TIME_STEP, Layers::Linear),
    only(NORM, Layers::Linear),
    only(OUT, Layers::Linear),
];

/// Experts in one tensor a layer.
const STACKED: &[Weight] = &[
    formed(
        named(layer!(
            "mlp.experts.gate_up_proj",
            "ffn_gate_exps.weight",
            &[Experts, ExpertFeedForward, Hidden]
        )),
        Form::Half(0),
    ),
    formed(
        named(layer!(
            "mlp.experts.gate_up_proj",
            "ffn_up_exps.weight",
            &[Experts, ExpertFeedForward, Hidden]
        )),
        Form::Half(1),
    ),
    named(layer!(
        "mlp.experts.down_proj",
        "ffn_down_exps.weight",
        &[Experts, Hidden, ExpertFeedForward]
    )),
];
