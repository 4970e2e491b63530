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
    /// A block does the same whatever its number: no windows, rotations or slopes that go by it. Then it
    /// can be run as a model of one block.
    pub uniform: bool,
}

const NONE: Traits = Traits {
    alike: false,
    neighbours: false,
    rope_freqs: false,
    llama_shaped: false,
    uneven: false,
    residual: false,
    uniform: false,
};

const LLAMA: Traits = Traits {
    alike: true,
    neighbours: true,
    rope_freqs: true,
    llama_shaped: true,
    uneven: true,
    residual: true,
    uniform: true,
};

const QWEN: Traits = Traits {
    alike: true,
    llama_shaped: true,
    residual: true,
    uniform: true,
    ..NONE
};

/// Nothing is known of it but that a block does the same whatever its number.
const EVEN: Traits = Traits {
    uniform: true,
    ..NONE
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
            uniform: true,
            ..NONE
        },
    ),
    ("arcee", EVEN),
    ("seed_oss", EVEN),
    ("starcoder2", EVEN),
    ("gpt2", EVEN),
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
