//! Chooses the types of a file for a size or a quality.

use dwindle_formats::gguf::TensorType;

use super::trial::Trial;
use super::{Error, Study, Workbench};
use crate::plan::Subject;
use crate::progress::Unit;
use crate::target::{Chosen, Costs, Refinement, Search, of_bits, of_size};

/// What a file is to be like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// At most this many bytes.
    Bytes(u64),
    /// At most this fraction of the bytes of the checkpoint's weights.
    Part(f64),
    /// So many bits for each weight, metadata not counted.
    Bits(f64),
    /// The smallest file whose mean KL divergence, measured on the beginning of the text, is at
    /// most this.
    Divergence(f64),
}

/// How much is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Effort {
    /// Layers are fitted to 16 chunks of the text, types are judged on 8, and errors measured of an eighth
    /// of the blocks at a time.
    Fast,
    /// On 64 chunks, and errors of each block for itself.
    #[default]
    Normal,
    /// On 128 chunks; refines the choice by making and measuring up to 32 more files, on 32 chunks.
    Best,
}

/// How types are chosen.
#[derive(Debug, Clone, Default)]
pub struct Choosing {
    /// How much is measured.
    pub effort: Effort,
    /// Types to choose from; empty for all that suit the size.
    pub types: Vec<TensorType>,
    /// Chunks of the text that inputs are measured on and layers are fitted to; as many as the effort says
    /// where it is not said.
    pub chunks: Option<usize>,
}

impl Choosing {
    /// Chunks of the text that inputs are measured on and layers are fitted to.
    pub fn sequences(&self) -> usize {
        self.chunks.unwrap_or(match self.effort {
            Effort::Fast => 16,
            Effort::Normal => 64,
            Effort::Best => 128,
        })
    }
}

impl Effort {
    /// The most chunks that types are judged on.
    pub(super) fn judged(self) -> usize {
        match self {
            Effort::Fast => 8,
            Effort::Normal | Effort::Best => usize::MAX,
        }
    }
}

/// Chunks on which files are measured.
pub(super) const CHUNKS: usize = 8;

/// Files that are made and measured to improve on a choice.
const REFINEMENTS: usize = 32;

/// Chunks on which those files are measured: on few, chance would choose.
const REFINING_CHUNKS: usize = 32;

impl Goal {
    /// The goal in bytes, for a checkpoint whose weights take `whole` bytes.
    pub fn bytes(self, whole: u64) -> Option<u64> {
        match self {
            Goal::Bytes(bytes) => Some(bytes),
            Goal::Part(part) => Some((part * whole as f64) as u64),
            Goal::Bits(_) | Goal::Divergence(_) => None,
        }
    }

    /// The goal in bits for each weight, as far as that can be told before types are chosen.
    pub(super) fn bits(self, subject: &Subject<'_>) -> Option<f64> {
        match self {
            Goal::Bits(bits) => Some(bits),
            _ => {
                let bytes = self.bytes(subject.bytes())?;
                Some(8.0 * bytes as f64 / subject.elements() as f64)
            }
        }
    }
}

/// The types of the file that is wanted.
///
/// # Errors
/// A goal that no file reaches, and whatever ends a measurement.
pub fn choose(
    bench: &Workbench<'_>,
    choosing: &Choosing,
    study: &Study,
    goal: Goal,
) -> Result<Chosen, Error> {
    let costs = study.costs(bench, &choosing.types)?;
    let chosen = by_costs(bench, &costs, study, goal)?;
    let Some((costs, better)) = refined(bench, choosing, study, &costs, &chosen)? else {
        return Ok(chosen);
    };
    if !matches!(goal, Goal::Divergence(_)) {
        return Ok(better);
    }
    let again = by_costs(bench, &costs, study, goal)?;
    Ok(std::cmp::min_by_key(chosen, again, |c| c.bytes))
}

/// The same, by what was measured of tensors alone.
fn by_costs(
    bench: &Workbench<'_>,
    costs: &Costs,
    study: &Study,
    goal: Goal,
) -> Result<Chosen, Error> {
    let task = bench.task();
    match goal {
        Goal::Divergence(kld) => smallest(bench, costs, study, kld),
        Goal::Bits(bits) => Ok(of_bits(costs, &task, bits)?),
        Goal::Bytes(_) | Goal::Part(_) => {
            let bytes = goal.bytes(bench.subject.bytes()).unwrap_or(0);
            Ok(of_size(costs, &task, bytes)?)
        }
    }
}

/// The smallest file whose measured divergence is at most this.
fn smallest(
    bench: &Workbench<'_>,
    costs: &Costs,
    study: &Study,
    kld: f64,
) -> Result<Chosen, Error> {
    let trial = Trial::new(bench, study, CHUNKS)?;
    let mut search = Search::new(costs, bench.task(), kld);
    bench.progress.begin("trying files", 0, Unit::Items);
    while let Some(chosen) = search.propose()? {
        let found = trial.kld(&chosen)?;
        bench.progress.advance(1);
        search.found(chosen, found);
    }
    bench.progress.end();
    Ok(search.finish()?.0)
}

/// With the best effort, a choice refined by building and measuring files, and the costs corrected
/// by them.
///
/// # Errors
/// Whatever ends a measurement.
pub fn refined(
    bench: &Workbench<'_>,
    choosing: &Choosing,
    study: &Study,
    costs: &Costs,
    chosen: &Chosen,
) -> Result<Option<(Costs, Chosen)>, Error> {
    if choosing.effort != Effort::Best {
        return Ok(None);
    }
    let trial = Trial::new(bench, study, REFINING_CHUNKS)?;
    bench
        .progress
        .begin("refining", REFINEMENTS as u64, Unit::Items);
    let first = (chosen.clone(), trial.kld(chosen)?);
    let mut search = Refinement::new(costs, bench.task(), first, REFINEMENTS);
    while let Some(chosen) = search.propose()? {
        search.found(trial.kld(&chosen)?);
        bench.progress.advance(1);
    }
    bench.progress.end();
    Ok(Some(search.finish()))
}
