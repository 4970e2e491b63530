//! The families of models as data: how each differs from the others.

mod bert;
mod cohere;
mod deepseek;
mod gemma;
mod glm;
mod gpt;
mod gpt_oss;
mod granite;
mod lfm;
mod llama;
mod minimax;
mod olmo;
mod others;
mod phi;
mod qwen;
mod qwen_linear;
mod state_spaces;
mod weights;

use serde_json::{Map, Value};

use super::config::Default;
use super::kinds::{Kind, kinds_of};
use super::latent::{LatentDim, LatentForm};
use super::linear::{Each, LinearDim, LinearForm};
use super::state_space::{StateDim, StateForm};

/// Every family, in the order in which messages list them.
const LINEAGES: [&[Family]; 17] = [
    llama::ALL,
    qwen::ALL,
    qwen_linear::ALL,
    gemma::ALL,
    phi::ALL,
    granite::ALL,
    state_spaces::ALL,
    olmo::ALL,
    glm::ALL,
    deepseek::ALL,
    minimax::ALL,
    lfm::ALL,
    gpt::ALL,
    gpt_oss::ALL,
    cohere::ALL,
    others::ALL,
    bert::ALL,
];

const HEADS: &str = "num_attention_heads";
const KV_HEADS: &str = "num_key_value_heads";

/// A number of the configuration that a tensor's dimension must equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dim {
    Vocabulary,
    Hidden,
    FeedForward,
    /// Query heads times head dimension.
    Query,
    /// Key and value heads times head dimension.
    KeyValue,
    /// Rows of Q, K and V together.
    QueryKeyValue,
    /// Rows of a gate and of what it gates together.
    TwiceFeedForward,
    Positions,
    /// Kinds of texts that an encoder tells apart.
    TokenTypes,
    Head,
    /// Query heads.
    HeadCount,
    Experts,
    /// What one expert's feed-forward layer is wide.
    ExpertFeedForward,
    /// What experts read and write: the stream, or something narrower.
    ExpertHidden,
    /// What the feed-forward layer is wide that all tokens share.
    SharedFeedForward,
    /// Rows of Q and of its gate.
    QueryAndGate,
    /// A number of linear attention's.
    Linear(LinearDim),
    /// A number of attention's through a latent vector.
    Latent(LatentDim),
    /// A number of state spaces'.
    State(StateDim),
    /// Three times the width of the stream.
    TriplyHidden,
    /// Tokens that a convolution of few reaches over.
    Reach,
    One,
}

/// Heads that share the rows of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heads {
    Query,
    KeyValue,
}

/// How a weight comes out of a tensor of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As it is.
    Whole,
    /// Rows of each head go from rotary halves to pairs.
    Pairs(Heads),
    /// Rows are the checkpoint's columns.
    Transposed,
    /// The first or the second half of the rows of each matrix.
    Half(u64),
    /// Every second row of each matrix, from the first or the second.
    Alternate(u64),
    /// The same of rows that are the checkpoint's columns.
    TransposedAlternate(u64),
    /// Every second element of each row, from the first or the second.
    AlternateElements(u64),
    /// Q, K and V: rows of each key head and of its query heads together become all of Q, all of K, all of V.
    Grouped,
    /// One of Q, K and V, which llama.cpp has in one matrix that adds a bias, zero here. Q is multiplied by the root
    /// of the head dimension, by which llama.cpp divides.
    Third(usize),
    /// As linear attention has it.
    Linear(LinearForm),
    /// A part of what makes keys and values of a latent vector.
    Latent(LatentForm),
    /// As state spaces have it.
    State(StateForm),
    /// A convolution, which has a dimension of one between.
    Convolution,
    /// One is added to each element, save those of a bias.
    PlusOne,
    /// Positions without those that lead, up to the padding token's.
    BehindPadding,
}

/// A weight: its name in the checkpoint and in GGUF, `{}` standing for the layer and `{e}` for the
/// expert, without `.weight` or `.bias`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight {
    pub(super) source: &'static str,
    pub(super) target: &'static str,
    /// Slowest dimension first, as llama.cpp has them; a bias has the first alone.
    pub(super) shape: &'static [Dim],
    pub(super) form: Form,
    /// Whether a model may be without it.
    pub(super) optional: bool,
    /// Whether it is a norm that may have a bias; matrices may have one in any case.
    pub(super) shifts: bool,
    /// Whether the names are whole, without `.weight` or `.bias` behind them.
    pub(super) named: bool,
    /// The layers that have it.
    pub(super) layers: Layers,
}

/// Some of the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layers {
    All,
    /// The leading ones, which are without experts.
    Leading,
    /// Those behind the leading ones.
    Behind,
    /// Those of a convolution, or a state space, instead of attention.
    Keyless,
    /// Those of attention.
    Keyed,
    /// Those that are no more than a feed-forward layer.
    Feeding,
    /// All, of a model that has experts.
    WithExperts,
    /// All, of a model that has none.
    WithoutExperts,
    /// Those of linear attention.
    Linear,
    /// Those of attention to everything, where there is linear attention.
    Attending,
}

/// What a number of the configuration becomes in GGUF.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Parameter {
    /// A count under a key of its own.
    Count(&'static str, &'static str),
    /// A number under a key of its own, unless it is zero.
    Number(&'static str, &'static str),
    /// The rotary dimensions: the head dimension.
    RotaryDimensions,
    /// The rotary dimensions, where only a part of a head turns.
    PartialRotary,
    /// A switch under a key of its own.
    Switch(&'static str, &'static str),
    /// Layers that look at no more than a window of what was before.
    Window(Windows),
    /// A number of the rotary parameters under a key of its own.
    Rotary(&'static str, &'static str),
    /// How many layers see images besides the first.
    Deepstack,
    /// Linear attention, and which layers have it.
    LinearAttention,
    /// Attention through a latent vector.
    LatentAttention,
    /// State spaces.
    StateSpaces,
    /// That layers of convolutions and of state spaces have no heads of keys.
    HeadsWhereAttending,
    /// That layers which are something else have no feed-forward layer.
    WidthsWhereFeeding,
    /// The parts of a head that turn by time, height and width.
    Sections,
    /// The size of the vocabulary.
    VocabularySize,
    /// The kinds of texts that an encoder tells apart.
    TokenTypes,
    /// The length of a text, where positions count from behind the padding token's.
    PositionsBehindPadding,
    /// How a sentence-transformers model pools, where `modules.json` says so.
    Pooling,
    /// That rotary frequencies are not scaled.
    NoRopeScaling,
}

/// Which layers have a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    /// Those that `layer_types` says.
    ByLayer,
    /// The same, which llama.cpp knows only of models with so many layers.
    At(u64),
    /// All but each one of so many, which llama.cpp knows.
    But(u64),
    /// All, where there is a window.
    Everywhere,
    /// Those that GPT-Neo's configuration says. llama.cpp heeds neither window nor layers.
    Neo,
}

/// A value of the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fixed {
    Null,
    False,
    True,
    Count(u32),
    Text(&'static str),
}

/// How positions are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotary {
    /// Not by rotary embedding.
    None,
    /// Rotary embedding, scaled as llama.cpp's metadata can say.
    Scaled,
    /// The same, and Llama 3's scaling becomes a `rope_freqs` tensor.
    Llama3,
    /// With factors for long and for short contexts, as tensors.
    LongRope,
}

/// Where the vocabulary comes from, tried in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tokens {
    /// `tokenizer.model`, then `tokenizer.json` with SentencePiece's pieces, then byte-level BPE.
    Llama,
    /// The same, whatever `tokenizer_config.json` says of spaces.
    Pieces,
    /// `tokenizer.model`, then byte-level BPE.
    Qwen,
    /// Byte-level BPE only.
    Bpe,
    /// The same, or GPT-2's `vocab.json` and `merges.txt`.
    Gpt2,
    /// WordPiece.
    WordPiece,
    /// SentencePiece's unigrams.
    Unigram,
}

/// Some of the models of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Among {
    All,
    /// Those with layers of state spaces.
    WithStateSpaces,
    /// Those without.
    WithoutStateSpaces,
    /// Those with layers of experts.
    WithRouting,
    /// Those without.
    WithoutRouting,
}

impl Among {
    /// Whether a model is among them.
    fn has(self, config: &Map<String, Value>) -> bool {
        let kinds = config.get("layer_types").and_then(Value::as_array);
        let of_state = |kind: &Value| kind == "mamba" || kind == "linear_attention";
        let any = kinds.is_some_and(|kinds| kinds.iter().any(of_state));
        let routes = kinds_of(config).is_some_and(|kinds| kinds.contains(&Kind::Routed));
        match self {
            Among::All => true,
            Among::WithStateSpaces => any,
            Among::WithoutStateSpaces => !any,
            Among::WithRouting => routes,
            Among::WithoutRouting => !routes,
        }
    }
}

/// A model family.
#[derive(Debug)]
pub(super) struct Family {
    /// Names in `architectures` of `config.json`.
    pub(super) names: &'static [&'static str],
    /// Which models of these names are of the family.
    pub(super) among: Among,
    /// llama.cpp's name.
    pub(super) architecture: &'static str,
    /// What the configuration says where it says nothing.
    pub(super) defaults: &'static [Default],
    /// Keys of the configuration that this family does not heed.
    pub(super) ignored: &'static [&'static str],
    /// What llama.cpp's graph takes for granted: another value in the configuration is refused.
    pub(super) fixed: &'static [(&'static str, Fixed)],
    /// Tensors that llama.cpp has no place for: names, with `*` for what may begin or end them.
    pub(super) dropped: &'static [&'static str],
    pub(super) weights: &'static [&'static [Weight]],
    /// Parameters beyond those that every family has.
    pub(super) parameters: &'static [Parameter],
    pub(super) rotary: Rotary,
    pub(super) tokens: Tokens,
    /// Whether its models read texts and predict no tokens.
    pub(super) encodes: bool,
    /// Keys that are the same for all models of the family.
    pub(super) always: &'static [(&'static str, Constant)],
    /// What a user must know, in a sentence.
    pub(super) remark: Option<&'static str>,
}

/// A value of GGUF's metadata.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Constant {
    Switch(bool),
    Count(u32),
    Text(&'static str),
}

/// What families have that say nothing else.
const FAMILY: Family = Family {
    names: &[],
    among: Among::All,
    architecture: "",
    defaults: &[],
    ignored: &[],
    fixed: &[],
    dropped: &[],
    weights: &[],
    parameters: &[],
    rotary: Rotary::Scaled,
    tokens: Tokens::Bpe,
    encodes: false,
    always: &[],
    remark: None,
};

/// The family of a model by its name in `architectures`.
pub(super) fn find(name: &str, config: &Map<String, Value>) -> Option<&'static Family> {
    all().find(|f| f.names.contains(&name) && f.among.has(config))
}

/// Models that llama.cpp's graphs can't be made to compute, and why.
const INEXPRESSIBLE: [(&str, &str); 1] = [(
    "OpenAIGPT",
    "its norms stand behind its layers, and it has none before the output",
)];

/// Why no file of llama.cpp's can hold a model of this class, if that is known.
pub(super) fn inexpressible(name: &str) -> Option<&'static str> {
    let found = INEXPRESSIBLE
        .iter()
        .find(|(start, _)| name.starts_with(start));
    found.map(|(_, why)| *why)
}

/// What messages list as supported.
pub(super) fn supported() -> String {
    let mut names: Vec<String> = all().map(|f| format!("`{}`", f.names[0])).collect();
    names.dedup();
    names.join(", ")
}

/// A family that is converted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Names in `architectures` of `config.json`.
    pub classes: &'static [&'static str],
    /// llama.cpp's name.
    pub architecture: &'static str,
    /// Whether its models embed texts and predict no tokens.
    pub encodes: bool,
    /// Whether models can go back to `transformers`: their weights lie in the checkpoint as in llama.cpp.
    pub exported: bool,
}

/// Whether a class is of models that see, or hear, besides.
pub(super) fn sees(class: &str) -> bool {
    class.ends_with("ForConditionalGeneration")
}

impl Family {
    /// Whether its weights lie in the checkpoint as in llama.cpp, save for rotary pairs.
    pub(super) fn lies_as_in_llama_cpp(&self) -> bool {
        let as_it_is = |w: &Weight| matches!(w.form, Form::Whole | Form::Pairs(_));
        self.weights.iter().copied().flatten().all(as_it_is)
    }
}

/// Every family that is converted.
pub fn known() -> Vec<Known> {
    let of = |family: &'static Family| Known {
        classes: family.names,
        architecture: family.architecture,
        encodes: family.encodes,
        exported: !family.encodes
            && family.names.iter().any(|name| !sees(name))
            && family.lies_as_in_llama_cpp(),
    };
    all().map(of).collect()
}

fn all() -> impl Iterator<Item = &'static Family> {
    LINEAGES.into_iter().flatten()
}
