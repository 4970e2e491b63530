//! Checks a recipe's `[structure]` against the model.

use super::StructureError;
use super::blocks::Blocks;
use crate::architecture::{Model, Traits};
use crate::plan::{Dropped, Structure};

/// Checks the table `[structure]` against itself and the model.
///
/// # Errors
/// [`StructureError::Target`].
pub fn check(wanted: &Structure, model: &Model, blocks: &Blocks) -> Result<(), StructureError> {
    check_keys(wanted, model)?;
    check_lengths(wanted, blocks)?;
    check_dropped(&wanted.drop, blocks.all.len())
}

fn bad(what: &'static str, found: impl ToString, expected: &str) -> StructureError {
    StructureError::Target {
        what,
        found: found.to_string(),
        expected: expected.to_string(),
    }
}

/// Which keys are there at all, and which of them can't stand together.
fn check_keys(wanted: &Structure, model: &Model) -> Result<(), StructureError> {
    let counts = [
        wanted.experts,
        wanted.heads,
        wanted.value_length,
        wanted.key_length,
    ];
    let is_deep = counts.iter().any(Option::is_some) || wanted.drop != Dropped::default();
    if is_deep && !Traits::of(&model.architecture).alike {
        return Err(bad(
            "the architecture for `heads`, `value_length`, `key_length`, `experts` or `drop`",
            format!("`{}`", model.architecture),
            &format!("one of {}", Traits::names(|t| t.alike)),
        ));
    }
    for (what, value) in [("`keep`", wanted.keep), ("`ffn`", wanted.ffn)] {
        if let Some(f) = value.filter(|f| !(*f > 0.0 && *f <= 1.0)) {
            return Err(bad(what, f, "a fraction above 0 and up to 1"));
        }
    }
    if wanted.keep.is_some() && (wanted.ffn.is_some() || wanted.heads.is_some()) {
        let found = "given beside `ffn` or `heads`";
        return Err(bad("`keep`", found, "one or the other"));
    }
    let narrows = wanted.keep.is_some() || wanted.ffn.is_some();
    if wanted.experts.is_some() && narrows {
        let found = "given beside `ffn` or `keep`";
        return Err(bad("`experts`", found, "one after the other"));
    }
    if !narrows && !is_deep {
        let expected = "`keep`, `ffn`, `heads`, `value_length`, `key_length`, `experts` or `drop`";
        return Err(bad("`[structure]`", "empty", expected));
    }
    Ok(())
}

fn check_lengths(wanted: &Structure, blocks: &Blocks) -> Result<(), StructureError> {
    for (what, length, whole) in [
        ("`value_length`", wanted.value_length, blocks.value_length),
        ("`key_length`", wanted.key_length, blocks.key_length),
    ] {
        // llama.cpp's caches and kernels go by pairs.
        let fits = |n: &usize| (2..=whole).contains(n) && n.is_multiple_of(2);
        if let Some(length) = length.filter(|n| !fits(n)) {
            let expected = format!("an even number of 2 to {whole}");
            return Err(bad(what, length, &expected));
        }
    }
    Ok(())
}

fn check_dropped(dropped: &Dropped, blocks: usize) -> Result<(), StructureError> {
    if let Dropped::Count(count) = dropped
        && *count >= blocks
    {
        let expected = format!("less than {blocks}, one block at least stays");
        return Err(bad("`drop`", count, &expected));
    }
    let numbers = dropped.numbers();
    if let Some(block) = numbers.iter().find(|b| **b >= blocks) {
        let expected = format!("blocks below {blocks}");
        return Err(bad("`drop`", block, &expected));
    }
    if (0..blocks).all(|block| numbers.contains(&block)) {
        return Err(bad("`drop`", "every block", "one that stays"));
    }
    Ok(())
}
