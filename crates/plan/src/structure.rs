//! The table `[structure]` of a recipe: what is to become of the model as a whole.

use serde::Deserialize;

/// The table `[structure]` of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Structure {
    /// The fraction of the blocks' parameters that stays, shared by measured sensitivity.
    pub keep: Option<f64>,
    /// The fraction of the feed-forward layers' columns that stays, the same in each block.
    pub ffn: Option<f64>,
    /// Key and value heads that stay, the same number in each block.
    pub heads: Option<usize>,
    /// Elements of each head's values that stay.
    pub value_length: Option<usize>,
    /// Elements of each head's queries and keys that stay, two for a rotary pair.
    pub key_length: Option<usize>,
    /// Experts that stay, the same number in each block.
    pub experts: Option<usize>,
    /// Blocks that leave.
    #[serde(default)]
    pub drop: Dropped,
}

/// Blocks that leave.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Dropped {
    /// So many, those that change the residual stream least.
    Count(usize),
    /// These, counted from 0.
    Blocks(Vec<usize>),
}

impl Default for Dropped {
    fn default() -> Dropped {
        Dropped::Blocks(Vec::new())
    }
}

impl Dropped {
    /// The blocks, where they are known.
    pub fn numbers(&self) -> &[usize] {
        match self {
            Dropped::Count(_) => &[],
            Dropped::Blocks(numbers) => numbers,
        }
    }
}

impl Structure {
    /// A budget for all blocks.
    pub fn keep(fraction: f64) -> Structure {
        Structure {
            keep: Some(fraction),
            ..Structure::default()
        }
    }

    /// Whether it is decided by what the model does with a text.
    pub fn needs_text(&self) -> bool {
        self.key_length.is_some() || matches!(self.drop, Dropped::Count(_))
    }
}
