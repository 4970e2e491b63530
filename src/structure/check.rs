//! Holds what a recipe wants of a model's structure against the model.

use super::StructureError;
use super::blocks::Blocks;
use crate::architecture::{Model, Traits};
use crate::plan::{Dropped, Structure};

/// Whether more than columns of feed-forward layers leaves.
fn is_deep(wanted: &Structure) -> bool {
    let counts = [
        wanted.heads,
        wanted.value_length,
        wanted.key_length,
        wanted.experts,
    ];
    counts.iter().any(Option::is_some) || wanted.drop != Dropped::default()
}

/// Holds it against itself and the model.
///
/// # Errors
/// [`StructureError::Target`].
pub fn check(wanted: &Structure, model: &Model, parts: &Blocks) -> Result<(), StructureError> {
    let blocks = parts.all.len();
    let bad = |what, found: String, expected: &str| StructureError::Target {
        what,
        found,
        expected: expected.to_string(),
    };
    if is_deep(wanted) && !Traits::of(&model.architecture).alike {
        return Err(bad(
            "the architecture for `heads`, `value_length`, `key_length`, `experts` or `drop`",
            format!("`{}`", model.architecture),
            &format!("one of {}", Traits::names(|t| t.alike)),
        ));
    }
    for (what, value) in [("`keep`", wanted.keep), ("`ffn`", wanted.ffn)] {
        if let Some(f) = value.filter(|f| !(*f > 0.0 && *f <= 1.0)) {
            let expected = "a fraction above 0 and up to 1";
            return Err(bad(what, f.to_string(), expected));
        }
    }
    if wanted.keep.is_some() && (wanted.ffn.is_some() || wanted.heads.is_some()) {
        let found = "given beside `ffn` or `heads`".to_string();
        return Err(bad("`keep`", found, "one or the other"));
    }
    let narrows = wanted.keep.is_some() || wanted.ffn.is_some();
    if wanted.experts.is_some() && narrows {
        let found = "given beside `ffn` or `keep`".to_string();
        return Err(bad("`experts`", found, "one after the other"));
    }
    let counts = [
        wanted.experts,
        wanted.heads,
        wanted.value_length,
        wanted.key_length,
    ];
    if !narrows && counts.iter().all(Option::is_none) && wanted.drop == Dropped::default() {
        let expected = "`keep`, `ffn`, `heads`, `value_length`, `key_length`, `experts` or `drop`";
        return Err(bad("`[structure]`", "empty".to_string(), expected));
    }
    for (what, length, whole) in [
        ("`value_length`", wanted.value_length, parts.value_length),
        ("`key_length`", wanted.key_length, parts.key_length),
    ] {
        // llama.cpp's caches and kernels go by pairs.
        let fits = |n: &usize| (2..=whole).contains(n) && n.is_multiple_of(2);
        if let Some(length) = length.filter(|n| !fits(n)) {
            let expected = format!("an even number of 2 to {whole}");
            return Err(bad(what, length.to_string(), &expected));
        }
    }
    if let Dropped::Count(count) = wanted.drop
        && count >= blocks
    {
        let expected = format!("less than {blocks}, one block at least stays");
        return Err(bad("`drop`", count.to_string(), &expected));
    }
    let drop = wanted.drop.numbers();
    if let Some(block) = drop.iter().find(|b| **b >= blocks) {
        let expected = format!("blocks below {blocks}");
        return Err(bad("`drop`", block.to_string(), &expected));
    }
    if (0..blocks).all(|block| drop.contains(&block)) {
        return Err(bad("`drop`", "every block".to_string(), "one that stays"));
    }
    Ok(())
}
