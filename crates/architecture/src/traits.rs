//! How llama.cpp's graphs differ between architectures, as far as it limits what can be pruned:
//! data, one row each. An architecture without a row has none of these traits.

/// Traits of an architecture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traits {
    /// Blocks and heads are all alike, so that any may be removed: no slopes, sinks or windows that
    /// belong to a number.
    pub alike: bool,
    /// Rotary embedding turns neighbouring elements of a head; otherwise its halves.
    pub neighbours: bool,
    /// The graph divides rotary frequencies by `rope_freqs`.
    pub rope_freqs: bool,
    /// A block is that of a Llama, so that the model can be written as a `step35`.
    pub llama_shaped: bool,
    /// Blocks may differ in width once they are written as a `deci`.
    pub uneven: bool,
    /// Each layer's output is added to the residual stream as it is, or times `residual_scale`.
    pub residual: bool,
    /// How one block can be run as a model of its own.
    pub alone: Alone,
    /// What the graph does to the rows of the embedding besides.
    pub root: Root,
    /// Whether the graph reads text by tokens only, and takes rows that none stand for to be an image's.
    pub by_tokens: bool,
    /// What llama.cpp calls the residual stream behind a block.
    pub behind: &'static str,
}

/// How one block of an architecture can be run as a model of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Alone {
    /// It can't: it does something that goes by its number, or to the rows of the embedding.
    #[default]
    No,
    /// As it is: it does the same whatever its number.
    Yes,
    /// Those of each so many see everything, the others a window.
    Windows {
        /// So many.
        each: u32,
        /// Whether the graph takes for granted that some have a window.
        always: bool,
        /// Whether those that see everything have rotary embedding.
        turn: bool,
    },
    /// Those of each so many are without rotary embedding.
    Rotations(u32),
    /// Some are of linear attention, as the metadata says.
    Linear,
    /// Those without heads of keys are convolutions, or state spaces.
    Keyless,
}

/// Whether the graph multiplies rows of the embedding by the root of their length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Root {
    /// No.
    #[default]
    No,
    /// Rows that it looks up by tokens.
    OfTokens,
    /// All rows that come in.
    OfRows,
}

const NONE: Traits = Traits {
    alike: false,
    neighbours: false,
    rope_freqs: false,
    llama_shaped: false,
    uneven: false,
    residual: false,
    alone: Alone::No,
    root: Root::No,
    by_tokens: false,
    behind: "l_out",
};

const LLAMA: Traits = Traits {
    alike: true,
    neighbours: true,
    rope_freqs: true,
    llama_shaped: true,
    uneven: true,
    residual: true,
    alone: Alone::Yes,
    root: Root::No,
    by_tokens: false,
    behind: "l_out",
};

const QWEN: Traits = Traits {
    alike: true,
    llama_shaped: true,
    residual: true,
    alone: Alone::Yes,
    ..NONE
};

/// Nothing is known of it but how a block can be run.
const fn alone(alone: Alone) -> Traits {
    Traits { alone, ..NONE }
}

const fn windows(each: u32, always: bool, turn: bool) -> Traits {
    alone(Alone::Windows { each, always, turn })
}

/// Nothing is known of it but that a block does the same whatever its number.
const EVEN: Traits = alone(Alone::Yes);

/// The same of one that reads text by tokens only.
const BY_TOKENS: Traits = Traits {
    by_tokens: true,
    ..EVEN
};

const LINEAR_BY_TOKENS: Traits = Traits {
    by_tokens: true,
    ..alone(Alone::Linear)
};

const NEMOTRON_H: Traits = Traits {
    behind: "nemotron_h_block_out",
    ..alone(Alone::Keyless)
};

/// Every architecture that has a trait.
const TABLE: &[(&str, Traits)] = &[
    ("llama", LLAMA),
    (
        "deci",
        Traits {
            llama_shaped: false,
            ..LLAMA
        },
    ),
    ("qwen2", QWEN),
    ("qwen3", QWEN),
    (
        "qwen3moe",
        Traits {
            alike: true,
            alone: Alone::Yes,
            ..NONE
        },
    ),
    ("arcee", EVEN),
    ("command-r", EVEN),
    ("deepseek2", EVEN),
    ("dots1", EVEN),
    ("ernie4_5", EVEN),
    ("exaone4", windows(4, false, false)),
    ("falcon", EVEN),
    ("glm4", BY_TOKENS),
    ("glm4moe", BY_TOKENS),
    ("gpt-oss", windows(2, true, true)),
    ("gpt2", EVEN),
    ("gptneox", EVEN),
    ("granitemoe", EVEN),
    ("granitehybrid", alone(Alone::Keyless)),
    ("lfm2", alone(Alone::Keyless)),
    ("minimax-m2", EVEN),
    ("mistral3", EVEN),
    ("nemotron", EVEN),
    ("nemotron_h", NEMOTRON_H),
    ("nemotron_h_moe", NEMOTRON_H),
    ("olmo", EVEN),
    ("olmo2", windows(4, false, true)),
    ("olmoe", EVEN),
    ("phi2", EVEN),
    ("phi3", EVEN),
    ("qwen2moe", EVEN),
    ("qwen2vl", BY_TOKENS),
    ("qwen3next", alone(Alone::Linear)),
    ("qwen35", LINEAR_BY_TOKENS),
    ("qwen35moe", LINEAR_BY_TOKENS),
    ("qwen3vl", BY_TOKENS),
    ("seed_oss", EVEN),
    ("smollm3", alone(Alone::Rotations(4))),
    ("stablelm", EVEN),
    ("starcoder2", EVEN),
    ("cohere2", windows(4, true, false)),
    (
        "gemma",
        Traits {
            root: Root::OfRows,
            ..EVEN
        },
    ),
    (
        "gemma2",
        Traits {
            root: Root::OfRows,
            ..windows(2, true, true)
        },
    ),
    (
        "gemma3",
        Traits {
            root: Root::OfTokens,
            ..windows(6, false, true)
        },
    ),
    (
        "granite",
        Traits {
            llama_shaped: false,
            uneven: false,
            ..LLAMA
        },
    ),
];

impl Traits {
    /// The traits of an architecture by llama.cpp's name.
    pub fn of(architecture: &str) -> Traits {
        let row = TABLE.iter().find(|(name, _)| *name == architecture);
        row.map_or(NONE, |(_, traits)| *traits)
    }

    /// The architectures that have a trait, for messages.
    pub fn names(which: impl Fn(Traits) -> bool) -> String {
        let with = TABLE.iter().filter(|(_, traits)| which(*traits));
        with.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_architecture_has_no_trait() {
        assert_eq!(Traits::of("perceptron"), NONE);
        assert!(Traits::of("qwen2").llama_shaped);
        assert_eq!(Traits::names(|t| t.llama_shaped), "llama, qwen2, qwen3");
    }
}
