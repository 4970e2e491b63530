//! The part of `dwindle compress` that makes the model itself smaller.

use std::path::Path;

use dwindle::architecture::Model;
use dwindle::checkpoint::Source;
use dwindle::pipeline::{FitOptions, repair};
use dwindle::plan::{Base, Recipe};
use dwindle::statistics::{Importance, Measured};
use dwindle::structure::{self, Blocks, Fits, Kept, Wish, decide, fit, parameters, reduce};
use fs_err as fs;
use serde::Serialize;

use super::fitting::running_pair;
use super::{Failure, progress};

/// A model that lost structure.
pub struct Smaller {
    /// What is left.
    pub model: Model,
    /// Importance weights of what is left.
    pub importance: Option<Importance>,
    /// What the user is told.
    pub report: Report,
}

/// What became of the blocks.
#[derive(Debug, Serialize)]
pub struct Report {
    architecture: String,
    parameters: u64,
    source_parameters: u64,
    /// Columns of each block's feed-forward layer; of blocks that left, none.
    feed_forward: Vec<Option<usize>>,
    /// Key and value heads of each block.
    heads: Vec<Option<usize>>,
}

/// Where a text to follow is, and how much of it.
pub struct Text<'a> {
    pub path: &'a Path,
    pub options: FitOptions,
}

/// Makes a model smaller as a recipe wants.
pub fn shrink(
    wish: &Wish,
    recipe: &Recipe,
    checkpoint: &Path,
    model: &Model,
    source: &dyn Source,
    measured: &Measured<'_>,
    text: Option<&Text<'_>>,
) -> Result<Smaller, Failure> {
    let blocks = Blocks::of(model)?;
    let bar = progress::count(blocks.all.len() as u64, "choosing");
    let granule = granule(&recipe.base);
    let kept = decide(wish, model, &blocks, source, measured, granule, &|| {
        bar.inc(1)
    })?;
    bar.finish_and_clear();
    let mut fits = fit(&kept, model, &blocks, source, measured)?;
    if let Some(text) = text {
        fits = follow(checkpoint, &kept, &blocks, &fits, model, source, text)?;
    }
    let smaller = reduce(model, source, &blocks, &kept, &fits)?;
    Ok(Smaller {
        importance: measured
            .importance
            .map(|i| structure::importance(i, model, &blocks, &kept)),
        report: report(model, &smaller, &blocks, &kept),
        model: smaller,
    })
}

/// Widths that suit the blocks of the type that most matrices get.
fn granule(base: &Base) -> usize {
    match base {
        Base::FileType(name) if name.contains("_k") || name.starts_with("iq") => {
            match name.as_str() {
                "iq4_nl" => 32,
                _ => 256,
            }
        }
        _ => 32,
    }
}

fn follow(
    checkpoint: &Path,
    kept: &Kept,
    blocks: &Blocks,
    fits: &Fits,
    model: &Model,
    source: &dyn Source,
    text: &Text<'_>,
) -> Result<Fits, Failure> {
    let words = String::from_utf8(fs::read(text.path)?)
        .map_err(|_| Failure::file(text.path, "the text is not valid UTF-8"))?;
    let (original, running) = running_pair(checkpoint)?;
    let bar = progress::count(0, "fitting");
    let fits = repair(
        kept,
        blocks,
        fits,
        model,
        source,
        [&original, &running],
        &words,
        &text.options,
        &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        },
    )?;
    bar.finish_and_clear();
    Ok(fits)
}

fn report(model: &Model, smaller: &Model, blocks: &Blocks, kept: &Kept) -> Report {
    let of_blocks = kept.blocks.iter().zip(&blocks.all);
    Report {
        architecture: smaller.architecture.clone(),
        parameters: parameters(smaller, |_| true),
        source_parameters: parameters(model, |_| true),
        feed_forward: of_blocks
            .clone()
            .map(|(kept, block)| {
                let full = block.ffn.as_ref()?.width;
                Some(kept.as_ref()?.columns.first().map_or(full, Vec::len))
            })
            .collect(),
        heads: of_blocks
            .map(|(kept, block)| {
                let full = block.attention.as_ref()?.kv_heads;
                Some(kept.as_ref()?.heads.as_ref().map_or(full, Vec::len))
            })
            .collect(),
    }
}

impl Report {
    /// One line for people.
    pub fn line(&self, source: &Model) -> String {
        let range = |all: &[Option<usize>]| {
            let known = || all.iter().flatten();
            match (known().min(), known().max()) {
                (Some(min), Some(max)) if min == max => min.to_string(),
                (Some(min), Some(max)) => format!("{min} to {max}"),
                _ => "none".to_string(),
            }
        };
        let architecture = match self.architecture == source.architecture {
            true => String::new(),
            false => format!(
                "; as a `{}`, whose blocks may differ in width",
                self.architecture
            ),
        };
        format!(
            "{} of {} parameters of the blocks stay ({:.1} %): feed-forward columns {}, key and value heads {}{architecture}",
            self.parameters,
            self.source_parameters,
            100.0 * self.parameters as f64 / self.source_parameters as f64,
            range(&self.feed_forward),
            range(&self.heads),
        )
    }
}
