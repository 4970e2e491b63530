//! Families of state spaces (Mamba 2), and the weights of their layers.

use super::Default::*;
use super::Dim::*;
use super::weights::*;
use super::*;

/// The weights of a layer's state space, under these names, in these layers.
macro_rules! state_spaces {
    ($mixer:literal, $layers:expr) => {
        &[
            only(
                weight(
                    concat!($mixer, ".in_proj"),
                    "blk.{}.ssm_in",
                    &[State(StateDim::In), Hidden],
                ),
                $layers,
            ),
            only(
                formed(
                    weight(
                        concat!($mixer, ".conv1d"),
                        "blk.{}.ssm_conv1d",
                        &[State(StateDim::Convolved), State(StateDim::Kernel)],
                    ),
                    Form::Convolution,
                ),
                $layers,
            ),
            only(
                named(weight(
                    concat!($mixer, ".dt_bias"),
                    "blk.{}.ssm_dt.bias",
                    &[State(StateDim::Heads)],
                )),
                $layers,
            ),
            only(
                formed(
                    named(weight(
                        concat!($mixer, ".A_log"),
                        "blk.{}.ssm_a",
                        &[State(StateDim::Heads), One],
                    )),
                    Form::State(StateForm::Decays),
                ),
                $layers,
            ),
            only(
                formed(
                    named(weight(
                        concat!($mixer, ".D"),
                        "blk.{}.ssm_d",
                        &[State(StateDim::Heads), One],
                    )),
                    Form::State(StateForm::Column),
                ),
                $layers,
            ),
            only(
                formed(
                    weight(
                        concat!($mixer, ".norm"),
                        "blk.{}.ssm_norm",
                        &[State(StateDim::Groups), State(StateDim::OfGroup)],
                    ),
                    Form::State(StateForm::ByGroups),
                ),
                $layers,
            ),
            only(
                weight(
                    concat!($mixer, ".out_proj"),
                    "blk.{}.ssm_out",
                    &[Hidden, State(StateDim::Inner)],
                ),
                $layers,
            ),
        ]
    };
}
pub(super) use state_spaces;

pub const ALL: &[Family] = &[
    Family {
        among: Among::WithoutRouting,
        architecture: "nemotron_h",
        // `transformers` writes them of every model.
        ignored: &[
            "n_group",
            "topk_group",
            "n_routed_experts",
            "num_experts_per_tok",
        ],
        weights: &[BACKBONE, STATES, ATTENDING, FEEDING],
        parameters: NEMOTRON_PARAMETERS,
        ..NEMOTRON
    },
    Family {
        among: Among::WithRouting,
        architecture: "nemotron_h_moe",
        weights: &[BACKBONE, STATES, ATTENDING, ROUTED],
        parameters: &[
            NEMOTRON_PARAMETERS[0],
            NEMOTRON_PARAMETERS[1],
            NEMOTRON_PARAMETERS[2],
            NEMOTRON_PARAMETERS[3],
            NEMOTRON_PARAMETERS[4],
            Parameter::Count("moe_intermediate_size", "expert_feed_forward_length"),
            Parameter::Count(
                "moe_shared_expert_intermediate_size",
                "expert_shared_feed_forward_length",
            ),
            Parameter::Count("n_shared_experts", "expert_shared_count"),
            Parameter::Switch("norm_topk_prob", "expert_weights_norm"),
            Parameter::Number("routed_scaling_factor", "expert_weights_scale"),
            Parameter::Count("moe_latent_size", "moe_latent_size"),
        ],
        ..NEMOTRON
    },
];

/// What NVIDIA's Nemotron-H has with experts and without: in each layer a state space, attention or a feed-forward layer.
const NEMOTRON: Family = Family {
    names: &["NemotronHForCausalLM"],
    defaults: &[
        Number("vocab_size", 131_072.0),
        Number("hidden_size", 4096.0),
        Number("intermediate_size", 21_504.0),
        Number(HEADS, 32.0),
        Number(KV_HEADS, 8.0),
        Same("head_dim", "attention_head_dim"),
        Number("head_dim", 128.0),
        Number("max_position_embeddings", 4096.0),
        Number("layer_norm_epsilon", 1e-5),
        Same("mamba_n_heads", "mamba_num_heads"),
        Number("mamba_n_heads", 128.0),
        Same("mamba_d_head", "mamba_head_dim"),
        Number("mamba_d_head", 64.0),
        Same("mamba_n_groups", "n_groups"),
        Number("mamba_n_groups", 8.0),
        Same("mamba_d_state", "ssm_state_size"),
        Number("mamba_d_state", 128.0),
        Same("mamba_d_conv", "conv_kernel"),
        Number("mamba_d_conv", 4.0),
    ],
    fixed: &[
        ("mlp_hidden_act", Fixed::Text("relu2")),
        ("mamba_hidden_act", Fixed::Text("silu")),
        ("mamba_proj_bias", Fixed::False),
        ("use_bias", Fixed::False),
        ("sliding_window", Fixed::Null),
    ],
    // Layers that predict further ahead.
    dropped: &["mtp.*"],
    rotary: Rotary::None,
    ..FAMILY
};

const BACKBONE: &[Weight] = &[
    weight("backbone.embeddings", "token_embd", &[Vocabulary, Hidden]),
    weight("backbone.norm_f", "output_norm", &[Hidden]),
    HEAD,
    weight("backbone.layers.{}.norm", "blk.{}.attn_norm", &[Hidden]),
];

const STATES: &[Weight] = state_spaces!("backbone.layers.{}.mixer", Layers::Keyless);

/// A weight of a layer, whatever it is of.
macro_rules! mixer {
    ($source:literal, $target:literal, $shape:expr, $layers:expr) => {
        only(
            weight(
                concat!("backbone.layers.{}.mixer.", $source),
                concat!("blk.{}.", $target),
                $shape,
            ),
            $layers,
        )
    };
}

/// Attention. Nothing turns, so that Q and K lie as they come, which the converter reorders none the less.
const ATTENDING: &[Weight] = &[
    formed(
        mixer!("q_proj", "attn_q", &[Query, Hidden], Layers::Keyed),
        Form::Pairs(Heads::Query),
    ),
    formed(
        mixer!("k_proj", "attn_k", &[KeyValue, Hidden], Layers::Keyed),
        Form::Pairs(Heads::KeyValue),
    ),
    mixer!("v_proj", "attn_v", &[KeyValue, Hidden], Layers::Keyed),
    mixer!("o_proj", "attn_output", &[Hidden, Query], Layers::Keyed),
];

const FEEDING: &[Weight] = &[
    mixer!("up_proj", "ffn_up", &[FeedForward, Hidden], Layers::Feeding),
    mixer!(
        "down_proj",
        "ffn_down",
        &[Hidden, FeedForward],
        Layers::Feeding
    ),
];

const ROUTED: &[Weight] = &[
    mixer!("gate", "ffn_gate_inp", &[Experts, Hidden], Layers::Feeding),
    named(mixer!(
        "gate.e_score_correction_bias",
        "exp_probs_b.bias",
        &[Experts],
        Layers::Feeding
    )),
    mixer!(
        "experts.{e}.up_proj",
        "ffn_up_exps",
        &[ExpertFeedForward, ExpertHidden],
        Layers::Feeding
    ),
    mixer!(
        "experts.{e}.down_proj",
        "ffn_down_exps",
        &[ExpertHidden, ExpertFeedForward],
        Layers::Feeding
    ),
    optional(mixer!(
        "fc1_latent_proj",
        "ffn_latent_down",
        &[ExpertHidden, Hidden],
        Layers::Feeding
    )),
    optional(mixer!(
        "fc2_latent_proj",
        "ffn_latent_up",
        &[Hidden, ExpertHidden],
        Layers::Feeding
    )),
    mixer!(
        "shared_experts.up_proj",
        "ffn_up_shexp",
        &[SharedFeedForward, Hidden],
        Layers::Feeding
    ),
    mixer!(
        "shared_experts.down_proj",
        "ffn_down_shexp",
        &[Hidden, SharedFeedForward],
        Layers::Feeding
    ),
];

const NEMOTRON_PARAMETERS: &[Parameter] = &[
    Parameter::VocabularySize,
    Parameter::RotaryDimensions,
    Parameter::HeadsWhereAttending,
    Parameter::WidthsWhereFeeding,
    Parameter::StateSpaces,
];
