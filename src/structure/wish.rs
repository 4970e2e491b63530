//! What a recipe wants of a model's structure.

use serde::Deserialize;

use super::StructureError;
use super::blocks::{ALIKE, Blocks};
use crate::architecture::Model;

/// The table `[structure]` of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
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
    pub drop: Drop,
}

/// Blocks that leave.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Drop {
    /// So many, those that change the residual stream least.
    Count(usize),
    /// These, counted from 0.
    Blocks(Vec<usize>),
}

impl Default for Drop {
    fn default() -> Drop {
        Drop::Blocks(Vec::new())
    }
}

impl Drop {
    /// The blocks, where they are known.
    pub(super) fn numbers(&self) -> &[usize] {
        match self {
            Drop::Count(_) => &[],
            Drop::Blocks(numbers) => numbers,
        }
    }
}

impl Wish {
    /// A budget for all blocks.
    pub fn keep(fraction: f64) -> Wish {
        Wish {
            keep: Some(fraction),
            ..Wish::default()
        }
    }

    /// Whether it is decided by what the model does with a text.
    pub fn needs_text(&self) -> bool {
        self.key_length.is_some() || matches!(self.drop, Drop::Count(_))
    }

    /// Whether more than columns of feed-forward layers leaves.
    fn is_deep(&self) -> bool {
        let counts = [self.heads, self.value_length, self.key_length, self.experts];
        counts.iter().any(Option::is_some) || self.drop != Drop::default()
    }

    /// Holds it against itself and the model.
    ///
    /// # Errors
    /// [`StructureError::Wish`].
    pub fn check(&self, model: &Model, parts: &Blocks) -> Result<(), StructureError> {
        let blocks = parts.all.len();
        let bad = |what, found: String, expected: &str| StructureError::Wish {
            what,
            found,
            expected: expected.to_string(),
        };
        if self.is_deep() && !ALIKE.contains(&&*model.architecture) {
            return Err(bad(
                "the architecture for `heads`, `value_length`, `key_length`, `experts` or `drop`",
                format!("`{}`", model.architecture),
                &format!("one of {}", ALIKE.join(", ")),
            ));
        }
        for (what, value) in [("`keep`", self.keep), ("`ffn`", self.ffn)] {
            if let Some(f) = value.filter(|f| !(*f > 0.0 && *f <= 1.0)) {
                let expected = "a fraction above 0 and up to 1";
                return Err(bad(what, f.to_string(), expected));
            }
        }
        if self.keep.is_some() && (self.ffn.is_some() || self.heads.is_some()) {
            let found = "given beside `ffn` or `heads`".to_string();
            return Err(bad("`keep`", found, "one or the other"));
        }
        let narrows = self.keep.is_some() || self.ffn.is_some();
        if self.experts.is_some() && narrows {
            let found = "given beside `ffn` or `keep`".to_string();
            return Err(bad("`experts`", found, "one after the other"));
        }
        let counts = [self.experts, self.heads, self.value_length, self.key_length];
        if !narrows && counts.iter().all(Option::is_none) && self.drop == Drop::default() {
            let expected =
                "`keep`, `ffn`, `heads`, `value_length`, `key_length`, `experts` or `drop`";
            return Err(bad("`[structure]`", "empty".to_string(), expected));
        }
        for (what, length, whole) in [
            ("`value_length`", self.value_length, parts.value_length),
            ("`key_length`", self.key_length, parts.key_length),
        ] {
            // llama.cpp's caches and kernels go by pairs.
            let fits = |n: &usize| (2..=whole).contains(n) && n.is_multiple_of(2);
            if let Some(length) = length.filter(|n| !fits(n)) {
                let expected = format!("an even number of 2 to {whole}");
                return Err(bad(what, length.to_string(), &expected));
            }
        }
        if let Drop::Count(count) = self.drop
            && count >= blocks
        {
            let expected = format!("less than {blocks}, one block at least stays");
            return Err(bad("`drop`", count.to_string(), &expected));
        }
        let drop = self.drop.numbers();
        if let Some(block) = drop.iter().find(|b| **b >= blocks) {
            let expected = format!("blocks below {blocks}");
            return Err(bad("`drop`", block.to_string(), &expected));
        }
        if (0..blocks).all(|block| drop.contains(&block)) {
            return Err(bad("`drop`", "every block".to_string(), "one that stays"));
        }
        Ok(())
    }
}
