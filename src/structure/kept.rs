//! What is kept of a model.

use super::blocks::{Attention, Blocks};
use super::pairs::Pairs;
use crate::method::projection::Projection;

/// What is kept of each block; `None` where the whole block is removed.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// One for each block of the model.
    pub blocks: Vec<Option<KeptBlock>>,
    /// Kept rotary pairs of queries and keys; `None` for all.
    pub pairs: Option<Pairs>,
    /// Kept elements of a head's values.
    pub value_length: usize,
}

/// What is kept of a block.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KeptBlock {
    /// Columns of the feed-forward layer, ascending; of a stack, of each expert. Empty where the
    /// layer is not touched.
    pub columns: Vec<Vec<usize>>,
    /// Kept experts, ascending; `None` for all.
    pub experts: Option<Vec<usize>>,
    /// Key and value heads, ascending; `None` where the attention is not touched.
    pub heads: Option<Vec<usize>>,
    /// The basis of those heads' values; `None` where they are unchanged.
    pub values: Option<Projection>,
}

impl KeptBlock {
    /// The kept key and value heads of its attention.
    pub fn heads_of(&self, attention: &Attention) -> Vec<usize> {
        let all = || (0..attention.kv_heads).collect();
        self.heads.clone().unwrap_or_else(all)
    }
}

impl Kept {
    /// All of a model, less some blocks and rotary pairs.
    pub(super) fn without(drop: &[usize], pairs: Option<Pairs>, blocks: &Blocks) -> Kept {
        let stays = |block| (!drop.contains(&block)).then(KeptBlock::default);
        Kept {
            blocks: (0..blocks.all.len()).map(stays).collect(),
            pairs,
            value_length: blocks.value_length,
        }
    }

    /// All of a model.
    pub fn all(blocks: &Blocks) -> Kept {
        Kept::without(&[], None, blocks)
    }

    /// The removed blocks.
    pub fn dropped(&self) -> impl Iterator<Item = usize> {
        let blocks = self.blocks.iter().enumerate();
        blocks.filter(|(_, kept)| kept.is_none()).map(|(i, _)| i)
    }

    /// Elements of a head's queries and keys.
    pub fn key_length(&self, blocks: &Blocks) -> usize {
        let all = blocks.key_length;
        self.pairs
            .as_ref()
            .map_or(all, |pairs| 2 * pairs.kept.len())
    }

    /// Whether feed-forward layers, or attention layers, differ in width.
    pub fn is_irregular(&self, blocks: &Blocks) -> bool {
        let widths = |kept: &KeptBlock, i: usize| {
            let block = &blocks.all[i];
            let ffn = block.ffn.as_ref().map_or(0, |f| f.width);
            let heads = block.attention.as_ref().map_or(0, |a| a.kv_heads);
            (
                kept.columns.first().map_or(ffn, Vec::len),
                kept.heads.as_ref().map_or(heads, Vec::len),
            )
        };
        let stay = self.blocks.iter().enumerate();
        let mut all = stay.filter_map(|(i, kept)| Some(widths(kept.as_ref()?, i)));
        let first = all.next();
        all.any(|widths| Some(widths) != first)
    }

    /// Bytes that a token takes in a cache of keys and values in F16; `None` where a block's
    /// attention is not known.
    pub fn cache_bytes(&self, blocks: &Blocks) -> Option<u64> {
        let element = self.key_length(blocks) + self.value_length;
        let stay = self.blocks.iter().zip(&blocks.all);
        stay.filter_map(|(kept, block)| Some((kept.as_ref()?, block)))
            .map(|(kept, block)| {
                let full = block.attention.as_ref()?.kv_heads;
                let heads = kept.heads.as_ref().map_or(full, Vec::len);
                Some(2 * (heads * element) as u64)
            })
            .sum()
    }
}
