//! What a recipe wants of a model's structure.

use serde::Deserialize;

use super::StructureError;

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
    /// Blocks that leave, counted from 0.
    #[serde(default)]
    pub drop: Vec<usize>,
}

impl Wish {
    /// A budget for all blocks.
    pub fn keep(fraction: f64) -> Wish {
        Wish {
            keep: Some(fraction),
            ..Wish::default()
        }
    }

    /// Holds it against itself and the number of blocks.
    pub(super) fn check(&self, blocks: usize) -> Result<(), StructureError> {
        let bad = |what, found: String, expected: &str| StructureError::Wish {
            what,
            found,
            expected: expected.to_string(),
        };
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
        if self.keep.is_none() && self.ffn.is_none() && self.heads.is_none() && self.drop.is_empty()
        {
            let expected = "`keep`, `ffn`, `heads` or `drop`";
            return Err(bad("`[structure]`", "empty".to_string(), expected));
        }
        if let Some(block) = self.drop.iter().find(|b| **b >= blocks) {
            let expected = format!("blocks below {blocks}");
            return Err(bad("`drop`", block.to_string(), &expected));
        }
        let mut left: Vec<bool> = vec![true; blocks];
        self.drop.iter().for_each(|b| left[*b] = false);
        if !left.contains(&true) {
            return Err(bad("`drop`", "every block".to_string(), "one that stays"));
        }
        Ok(())
    }
}
