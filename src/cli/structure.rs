//! The part of `dwindle compress` that makes the model itself smaller.

use std::path::Path;

use serde::Serialize;

use super::fitting::{on_cpu, running_pair, warn_of_unfitted};
use super::output::read_text;
use super::{Failure, progress};
use crate::architecture::{Model, ModelTensor};
use crate::fitting::{FitOptions, FitText, Unfitted, influence, repair, rotary_pairs};
use crate::llama;
use crate::plan::{Base, Dropped, Recipe, Structure, Subject};
use crate::statistics::Importance;
use crate::structure::{self, Blocks, Fits, Kept, Pairs, Whole, decide, fit, parameters, reduce};

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
    /// Elements of a head's queries and keys.
    key_length: usize,
    /// Elements of a head's values.
    value_length: usize,
    /// Experts of each block that has some.
    experts: Vec<Option<usize>>,
    /// Blocks that left.
    dropped: Vec<usize>,
    /// Bytes that a token takes in a cache in F16.
    cache_bytes_per_token: Option<u64>,
    source_cache_bytes_per_token: Option<u64>,
    /// Whether the output has become a copy of the embedding, with which it was one.
    output_copied: bool,
    /// Matrices that were not fitted to what the layers before them give.
    unfitted: Vec<Unfitted>,
}

/// Where a text to follow is, and how much of it.
pub struct Text<'a> {
    pub path: &'a Path,
    pub options: FitOptions,
    /// Whether layers are fitted one after the other.
    pub sequential: bool,
}

impl Text<'_> {
    fn of<'w>(&self, words: &'w str) -> FitText<'w> {
        FitText {
            words,
            options: self.options.clone(),
        }
    }
}

/// Makes a model smaller as a recipe wants.
pub fn shrink(
    wanted: &Structure,
    recipe: &Recipe,
    checkpoint: &Path,
    subject: Subject<'_>,
    text: Option<&Text<'_>>,
) -> Result<Smaller, Failure> {
    let whole = &Whole::of(subject)?;
    structure::check(wanted, subject.model, &whole.blocks)?;
    let watched = Watched {
        checkpoint,
        whole,
        text,
    };
    let wanted = &watched.with_numbers(wanted)?;
    let pairs = watched.pairs(wanted)?;
    let bar = progress::count(whole.blocks.all.len() as u64, "choosing");
    let granule = granule(&recipe.base);
    let kept = decide(whole, wanted, pairs, granule, &|| bar.inc(1))?;
    bar.finish_and_clear();
    let mut fits = fit(whole, &kept)?;
    let mut unfitted = Vec::new();
    if let Some(text) = text.filter(|t| t.sequential) {
        let (repaired, left) = follow(checkpoint, whole, &kept, &fits, text)?;
        fits.extend(repaired);
        warn_of_unfitted(&left);
        unfitted = left;
    }
    let smaller = reduce(whole, &kept, &fits)?;
    Ok(Smaller {
        importance: structure::importance(whole, &kept),
        report: Report {
            unfitted,
            ..report(subject.model, &smaller, &whole.blocks, &kept)
        },
        model: smaller,
    })
}

/// A model to be watched over a text.
struct Watched<'a> {
    checkpoint: &'a Path,
    whole: &'a Whole<'a>,
    text: Option<&'a Text<'a>>,
}

impl Watched<'_> {
    /// The model as it runs, and the text that a key of the recipe is decided by.
    fn start(&self, key: &str) -> Result<(llama::model::Model, &Text<'_>, String), Failure> {
        let text = self.text.ok_or_else(|| {
            Failure::Usage(format!(
                "`{key}` in `[structure]` is decided by what the model does with a text; give `--text`"
            ))
        })?;
        Ok((on_cpu(self.checkpoint)?, text, read_text(text.path)?))
    }

    /// A wanted that names the blocks that leave.
    fn with_numbers(&self, wanted: &Structure) -> Result<Structure, Failure> {
        let Dropped::Count(count) = wanted.drop else {
            return Ok(wanted.clone());
        };
        let (running, text, words) = self.start("drop")?;
        let measured = influence(self.whole, &running, &text.of(&words))?;
        let mut order: Vec<usize> = (0..measured.len()).collect();
        order.sort_by(|a, b| measured[*a].total_cmp(&measured[*b]));
        order.truncate(count);
        order.sort_unstable();
        Ok(Structure {
            drop: Dropped::Blocks(order),
            ..wanted.clone()
        })
    }

    /// The rotary pairs that stay.
    fn pairs(&self, wanted: &Structure) -> Result<Option<Pairs>, Failure> {
        let whole = self.whole.blocks.key_length;
        let Some(length) = wanted.key_length.filter(|n| *n < whole) else {
            return Ok(None);
        };
        structure::check_rotary(self.whole.subject.model, &self.whole.blocks)?;
        let frequencies = structure::frequencies(self.whole)?;
        let (running, text, words) = self.start("key_length")?;
        Ok(Some(rotary_pairs(
            self.whole,
            &running,
            &text.of(&words),
            &frequencies,
            length / 2,
        )?))
    }
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
    whole: &Whole<'_>,
    kept: &Kept,
    fits: &Fits,
    text: &Text<'_>,
) -> Result<(Fits, Vec<Unfitted>), Failure> {
    let words = read_text(text.path)?;
    let (original, running) = running_pair(checkpoint)?;
    let bar = progress::count(0, "fitting");
    let fits = repair(
        whole,
        kept,
        fits,
        [&original, &running],
        &text.of(&words),
        &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        },
    )?;
    bar.finish_and_clear();
    Ok(fits)
}

fn report(model: &Model, smaller: &Model, blocks: &Blocks, kept: &Kept) -> Report {
    let is_output = |t: &ModelTensor| t.name == "output.weight";
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
            .clone()
            .map(|(kept, block)| Some(kept.as_ref()?.heads_of(block.attention.as_ref()?).len()))
            .collect(),
        experts: of_blocks
            .map(|(kept, block)| {
                let all = block.ffn.as_ref()?.experts;
                let kept = kept.as_ref()?.experts.as_ref();
                Some(kept.map_or(all, Vec::len)).filter(|n| *n > 1 || all > 1)
            })
            .collect(),
        key_length: kept.key_length(blocks),
        value_length: kept.value_length,
        dropped: kept.dropped().collect(),
        cache_bytes_per_token: kept.cache_bytes(blocks),
        source_cache_bytes_per_token: Kept::all(blocks).cache_bytes(blocks),
        output_copied: smaller.tensors.iter().any(is_output)
            && !model.tensors.iter().any(is_output),
        unfitted: Vec::new(),
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
        let mut line = format!(
            "{} of {} parameters of the blocks stay ({:.1} %): feed-forward columns {}, key and value \
             heads {} with keys of {} and values of {} elements",
            self.parameters,
            self.source_parameters,
            100.0 * self.parameters as f64 / self.source_parameters as f64,
            range(&self.feed_forward),
            range(&self.heads),
            self.key_length,
            self.value_length,
        );
        if self.experts.iter().any(Option::is_some) {
            line += &format!(", experts {}", range(&self.experts));
        }
        if !self.dropped.is_empty() {
            let numbers: Vec<String> = self.dropped.iter().map(usize::to_string).collect();
            line += &format!("; blocks {} leave", numbers.join(", "));
        }
        if let (Some(before), Some(after)) = (
            self.source_cache_bytes_per_token,
            self.cache_bytes_per_token,
        ) && before != after
        {
            line += &format!("; a token's keys and values take {after} bytes of {before} in F16");
        }
        if self.architecture != source.architecture {
            line += &format!("; as a `{}`, which has such a form", self.architecture);
        }
        if self.output_copied {
            line += ", but wants an output of its own, a copy of the embedding";
        }
        line
    }
}
