//! Chooses the llama.cpp architecture in which a pruned model is written.
//!
//! Most have one length for keys and values, and blocks of one width. Of those shaped as a Llama,
//! `deci` has blocks of different widths, and `step35` keys and values of different lengths: with a
//! window of the whole context in each layer and no gates, it computes what a `llama` does. It
//! turns halves of a head where `llama` turns neighbours, applies no `rope_freqs` in such layers,
//! and needs an `output.weight` of its own.

use dwindle_formats::gguf::{Metadata, Value};

use super::StructureError;
use super::blocks::{Block, Blocks};
use super::kept::Kept;
use super::pairs::pair_elements;
use crate::architecture::{Model, ModelTensor, Traits, role};

/// Keys and values of different lengths.
pub(super) const UNEVEN: &str = "step35";

/// Roles that `step35` has.
const UNEVEN_ROLES: [&str; 14] = [
    "token_embd",
    "output_norm",
    "output",
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_q_norm",
    "attn_k_norm",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

/// Whether blocks may differ in width, as a `deci`.
pub(super) fn allows_irregular(model: &Model, blocks: &Blocks) -> bool {
    let traits = Traits::of(&model.architecture);
    let alike = |block: &Block| {
        let is_dense = block
            .ffn
            .as_ref()
            .is_some_and(|f| f.experts == 1 && f.rows.len() > 1);
        block.attention.is_some() && is_dense
    };
    traits.uneven && blocks.all.iter().all(alike)
}

/// That blocks would differ in width where they can't.
pub(super) fn differ(architecture: &str) -> StructureError {
    StructureError::Target {
        what: "the width of the blocks",
        found: "different from one to another".to_string(),
        expected: format!("the same, as `{architecture}` has no other"),
    }
}

/// The architecture of what is kept.
///
/// # Errors
/// [`StructureError::Target`] where there is none.
pub(super) fn architecture<'a>(
    kept: &Kept,
    model: &'a Model,
    blocks: &Blocks,
) -> Result<&'a str, StructureError> {
    let own = model.architecture.as_str();
    let is_irregular = kept.is_irregular(blocks);
    let lengths = [kept.key_length(blocks), kept.value_length];
    let refuse = |expected: String| StructureError::Target {
        what: "the length of heads",
        found: format!("{} for keys and {} for values", lengths[0], lengths[1]),
        expected,
    };
    if kept.pairs.is_some() && !Traits::of(own).rope_freqs {
        let whole = format!(
            "{} for keys, as `{own}` has no `rope_freqs`",
            blocks.key_length
        );
        return Err(refuse(whole));
    }
    if lengths[0] != lengths[1] {
        if !Traits::of(own).llama_shaped {
            let shaped = Traits::names(|t| t.llama_shaped);
            return Err(refuse(format!("the same, as `{own}` is none of {shaped}")));
        }
        if is_irregular {
            return Err(refuse("the same, where blocks differ in width".into()));
        }
        let unknown = |t: &&ModelTensor| !is_uneven_tensor(&t.name);
        if let Some(tensor) = model.tensors.iter().find(unknown) {
            let has_none = format!("the same, as `{UNEVEN}` has no `{}`", tensor.name);
            return Err(refuse(has_none));
        }
        if kept.pairs.is_some() {
            let has_none = format!("the same, as `{UNEVEN}` has no `rope_freqs.weight`");
            return Err(refuse(has_none));
        }
        let scaling = model.metadata.get(&format!("{own}.rope.scaling.type"));
        if scaling.is_some_and(|kind| kind.as_str() != Some("none")) {
            let has_none = format!("the same, as `{UNEVEN}` does not scale its rotary embedding");
            return Err(refuse(has_none));
        }
        return Ok(UNEVEN);
    }
    match is_irregular {
        false => Ok(own),
        true if allows_irregular(model, blocks) => Ok("deci"),
        true => Err(differ(own)),
    }
}

fn is_uneven_tensor(name: &str) -> bool {
    let role = role(name).1;
    let biased = ["attn_q", "attn_k", "attn_v"].contains(&role);
    UNEVEN_ROLES.contains(&role) && (biased || name.ends_with(".weight"))
}

/// The elements of a head in the order in which the smaller model has them; `None` where nothing
/// changes.
pub(super) fn head_order(
    kept: &Kept,
    blocks: &Blocks,
    [from, to]: [&str; 2],
) -> Option<Vec<usize>> {
    let neighbours = [from, to].map(|architecture| Traits::of(architecture).neighbours);
    if kept.pairs.is_none() && neighbours[0] == neighbours[1] {
        return None;
    }
    let half = blocks.key_length / 2;
    let pairs = kept.pairs.as_ref().map(|pairs| pairs.kept.clone());
    let pairs = pairs.unwrap_or_else(|| (0..half).collect());
    let [first, second] = pair_elements(from, blocks.key_length);
    Some(if neighbours[1] {
        pairs.iter().flat_map(|p| [first(*p), second(*p)]).collect()
    } else {
        let halves = pairs.iter().map(|p| first(*p));
        halves.chain(pairs.iter().map(|p| second(*p))).collect()
    })
}

/// Writes what `step35` asks for beyond a Llama's metadata.
pub(super) fn describe_uneven(metadata: &mut Metadata, blocks: usize) {
    let key = |name: &str| format!("{UNEVEN}.{name}");
    metadata.set(key("expert_feed_forward_length"), 0u32);
    // A window in every layer that sees all of the context.
    let context = metadata
        .get(&key("context_length"))
        .and_then(Value::as_u64)
        .unwrap_or(1 << 17);
    metadata.set(key("attention.sliding_window"), context as u32);
    let all = vec![1u32; blocks];
    metadata.set(key("attention.sliding_window_pattern"), all);
    if let Some(base) = metadata.get(&key("rope.freq_base")).cloned() {
        metadata.set(key("rope.freq_base_swa"), base);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pairs::Pairs;
    use super::*;

    #[test]
    fn pairs_keep_their_two_elements() {
        let blocks = Blocks {
            all: Vec::new(),
            embedding: 8,
            shared_by: 1,
            key_length: 8,
            value_length: 8,
        };
        let mut kept = Kept::without(&[], None, &blocks);
        assert_eq!(head_order(&kept, &blocks, ["llama", "deci"]), None);
        let order = head_order(&kept, &blocks, ["llama", UNEVEN]);
        assert_eq!(order, Some(vec![0, 2, 4, 6, 1, 3, 5, 7]));
        kept.pairs = Some(Pairs {
            kept: vec![0, 2],
            factors: Vec::new(),
        });
        let order = |from, to| head_order(&kept, &blocks, [from, to]).unwrap();
        assert_eq!(order("llama", "llama"), [0, 1, 4, 5]);
        assert_eq!(order("qwen3", UNEVEN), [0, 2, 4, 6]);
        assert_eq!(order("llama", UNEVEN), [0, 4, 1, 5]);
    }
}
