//! Prunes a model as the table `[structure]` of a recipe says.

use serde::Serialize;

use super::running::{checkpoint, pair};
use super::{Error, Text, Workbench};
use crate::architecture::{Model, ModelTensor};
use crate::blockwise::Unfitted;
use crate::fitting::{FitOptions, FitText, influence, repair, rotary_pairs};
use crate::llama;
use crate::plan::{Base, Dropped, Structure};
use crate::progress::Unit;
use crate::statistics::Importance;
use crate::structure::{self, Blocks, Fits, Kept, Pairs, Whole, decide, fit, parameters, reduce};

/// A model that lost structure.
pub(super) struct Smaller {
    /// The pruned model.
    pub model: Model,
    /// Importance weights of the pruned model.
    pub importance: Option<Importance>,
    /// How the blocks were pruned.
    pub report: Report,
}

/// How the blocks were pruned.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The architecture that the smaller model is written as.
    pub architecture: String,
    /// The source's.
    #[serde(skip)]
    pub source_architecture: String,
    /// Parameters of the kept blocks.
    pub parameters: u64,
    /// Parameters of the source's blocks.
    pub source_parameters: u64,
    /// Columns of each block's feed-forward layer; `None` for a block that was removed.
    pub feed_forward: Vec<Option<usize>>,
    /// Key and value heads of each block.
    pub heads: Vec<Option<usize>>,
    /// Elements of a head's queries and keys.
    pub key_length: usize,
    /// Elements of a head's values.
    pub value_length: usize,
    /// Experts of each block that has some.
    pub experts: Vec<Option<usize>>,
    /// Blocks that were removed.
    pub dropped: Vec<usize>,
    /// Bytes that a token takes in a cache in F16.
    pub cache_bytes_per_token: Option<u64>,
    /// The same of the source.
    pub source_cache_bytes_per_token: Option<u64>,
    /// Whether the output has become a copy of the embedding, with which it was one.
    pub output_copied: bool,
    /// Matrices that were not fitted to what the layers before them give.
    pub unfitted: Vec<Unfitted>,
}

/// A text to follow, how much of it, and whether layers are fitted one after the other.
#[derive(Clone, Copy)]
pub(super) struct Following<'a> {
    pub text: &'a Text,
    pub options: &'a FitOptions,
    pub sequential: bool,
}

impl<'a> Following<'a> {
    fn fit_text(&self) -> FitText<'a> {
        FitText {
            words: &self.text.words,
            options: self.options.clone(),
        }
    }
}

/// Prunes a model as a recipe says.
pub(super) fn shrink(
    bench: &Workbench<'_>,
    wanted: &Structure,
    base: &Base,
    text: Option<Following<'_>>,
) -> Result<Smaller, Error> {
    let subject = bench.subject;
    let whole = &Whole::of(subject)?;
    structure::check(wanted, subject.model, &whole.blocks)?;
    let watched = Watched { bench, whole, text };
    let wanted = &watched.with_numbers(wanted)?;
    let pairs = watched.pairs(wanted)?;
    let blocks = whole.blocks.all.len() as u64;
    bench.progress.begin("choosing", blocks, Unit::Items);
    let advance = || bench.progress.advance(1);
    let kept = decide(whole, wanted, pairs, granule(base), &advance)?;
    bench.progress.end();
    let mut fits = fit(whole, &kept)?;
    let mut unfitted = Vec::new();
    if let Some(text) = text.filter(|t| t.sequential) {
        let (repaired, left) = follow(bench, whole, (&kept, &fits), &text)?;
        fits.extend(repaired);
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
    bench: &'a Workbench<'a>,
    whole: &'a Whole<'a>,
    text: Option<Following<'a>>,
}

impl<'a> Watched<'a> {
    /// The model as it runs, and the text that a key of the recipe is decided by.
    fn start(&self, key: &'static str) -> Result<(llama::model::Model, FitText<'a>), Error> {
        let text = self.text.ok_or(Error::TextMissing { key })?;
        Ok((checkpoint(self.bench)?, text.fit_text()))
    }

    /// The same with the numbers of the blocks to remove.
    fn with_numbers(&self, wanted: &Structure) -> Result<Structure, Error> {
        let Dropped::Count(count) = wanted.drop else {
            return Ok(wanted.clone());
        };
        let (running, text) = self.start("drop")?;
        let measured = influence(self.whole, &running, &text)?;
        let mut order: Vec<usize> = (0..measured.len()).collect();
        order.sort_by(|a, b| measured[*a].total_cmp(&measured[*b]));
        order.truncate(count);
        order.sort_unstable();
        Ok(Structure {
            drop: Dropped::Blocks(order),
            ..wanted.clone()
        })
    }

    /// The kept rotary pairs.
    fn pairs(&self, wanted: &Structure) -> Result<Option<Pairs>, Error> {
        let whole = self.whole.blocks.key_length;
        let Some(length) = wanted.key_length.filter(|n| *n < whole) else {
            return Ok(None);
        };
        structure::check_rotary(self.whole.subject.model, &self.whole.blocks)?;
        let frequencies = structure::frequencies(self.whole)?;
        let (running, text) = self.start("key_length")?;
        let stay = length / 2;
        Ok(Some(rotary_pairs(
            self.whole,
            &running,
            &text,
            &frequencies,
            stay,
        )?))
    }
}

/// The least number of columns that are kept or left together.
const LEAST_GRANULE: usize = 32;

/// Widths that suit the blocks of the type that most matrices get.
fn granule(base: &Base) -> usize {
    match base {
        Base::FileType(file_type) => (file_type.ty.block_len() as usize).max(LEAST_GRANULE),
        Base::Source => LEAST_GRANULE,
    }
}

/// Fits the ends of layers to the residual stream.
fn follow(
    bench: &Workbench<'_>,
    whole: &Whole<'_>,
    (kept, fits): (&Kept, &Fits),
    text: &Following<'_>,
) -> Result<(Fits, Vec<Unfitted>), Error> {
    let (original, running) = pair(bench)?;
    bench.progress.begin("fitting", 0, Unit::Items);
    let models = [&original, &running];
    let reach = &mut |done, total| bench.progress.reach(done as u64, total as u64);
    let repaired = repair(whole, kept, fits, models, &text.fit_text(), reach)?;
    bench.progress.end();
    Ok(repaired)
}

fn report(model: &Model, smaller: &Model, blocks: &Blocks, kept: &Kept) -> Report {
    let is_output = |t: &ModelTensor| t.name == "output.weight";
    let of_blocks = kept.blocks.iter().zip(&blocks.all);
    Report {
        architecture: smaller.architecture.clone(),
        source_architecture: model.architecture.clone(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_suit_the_blocks_of_the_main_type() {
        let granule = |name: &str| granule(&name.parse().unwrap());
        for (name, expected) in [
            ("source", 32),
            ("f16", 32),
            ("q8_0", 32),
            ("iq4_nl", 32),
            ("iq4_xs", 256),
            ("q4_k_m", 256),
            ("tq1_0", 256),
            ("tq2_0", 256),
        ] {
            assert_eq!(granule(name), expected, "{name}");
        }
    }
}
