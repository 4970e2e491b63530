//! Searches the types for a target: a file size to the byte, or a divergence.

use std::collections::BTreeMap;
use std::path::Path;

use dwindle_formats::container::stock_len;
use dwindle_formats::gguf::TensorType;

use super::{Assignment, BudgetError, Costs, TYPES};
use crate::architecture::ModelTensor;
use crate::plan::{Plan, PlanError, Rounding, Subject, resolve};

/// Times that the header's share of a file is looked at anew.
const CORRECTIONS: usize = 8;

/// Files that are made and measured at most.
const FILES: usize = 8;

/// The fraction of a divergence that may be left unused.
const SLACK: f64 = 0.06;

/// What a divergence is aimed at below the one that was asked for.
const AIM: f64 = 0.97;

/// A model whose tensors' types are to be chosen.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// The model.
    pub subject: Subject<'a>,
    /// How its tensors are rounded.
    pub rounding: Rounding,
    /// A folder for files that only this run needs.
    pub scratch: &'a Path,
}

/// Types, and the plan of the file that has them.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The types.
    pub assignment: Assignment,
    /// The plan.
    pub plan: Plan,
    /// Bytes of the file.
    pub bytes: u64,
}

/// Refuses a size in which no file can be, by the smallest types that rows divide into: before anything
/// is measured. The smallest file is larger yet.
///
/// # Errors
/// [`BudgetError::TooSmall`].
pub fn refuse_too_small(subject: &Subject<'_>, bytes: u64) -> Result<(), BudgetError> {
    let least = |t: &ModelTensor| -> u64 {
        if !t.is_weight() {
            return 4 * t.elements();
        }
        let fits = |ty: &&TensorType| t.row_len().is_multiple_of(ty.block_len());
        let sizes = TYPES
            .iter()
            .filter(fits)
            .filter_map(|ty| ty.bytes(&t.shape));
        sizes.min().unwrap_or(0)
    };
    let smallest = subject.model.tensors.iter().map(least).sum();
    if bytes < smallest {
        return Err(BudgetError::TooSmall {
            wanted: bytes,
            smallest,
        });
    }
    Ok(())
}

/// The best stock file of at most this many bytes.
///
/// # Errors
/// [`BudgetError::TooSmall`] with the bytes of the smallest file.
pub fn of_size(costs: &Costs, task: &Task<'_>, bytes: u64) -> Result<Chosen, BudgetError> {
    // The header's digests depend a little on the types, and so does the room beside the header.
    let smallest = of_tensors(costs, task, costs.range().0)?;
    let mut overhead = smallest.bytes - smallest.assignment.bytes;
    for _ in 0..CORRECTIONS {
        let Some(left) = bytes.checked_sub(overhead) else {
            break;
        };
        let chosen = match of_tensors(costs, task, left) {
            Err(BudgetError::TooSmall { .. }) => break,
            chosen => chosen?,
        };
        if chosen.bytes <= bytes {
            return Ok(chosen);
        }
        overhead += chosen.bytes - bytes;
    }
    if smallest.bytes <= bytes {
        return Ok(smallest);
    }
    Err(BudgetError::TooSmall {
        wanted: bytes,
        smallest: smallest.bytes,
    })
}

/// The best file of at most this many bits per weight, metadata excluded.
///
/// # Errors
/// [`BudgetError::TooFewBits`] with the bits of the smallest file.
pub fn of_bits(costs: &Costs, task: &Task<'_>, bits: f64) -> Result<Chosen, BudgetError> {
    let smallest = of_tensors(costs, task, costs.range().0)?;
    let weights: u64 = task.subject.elements();
    let bytes = (bits * weights as f64 / 8.0) as u64;
    let whole = smallest.plan.bytes();
    if bytes < whole {
        return Err(BudgetError::TooFewBits {
            wanted: bits,
            smallest: 8.0 * whole as f64 / weights as f64,
        });
    }
    of_tensors(costs, task, smallest.assignment.bytes + (bytes - whole))
}

/// The best file in which the tensors to choose for take at most this many bytes.
fn of_tensors(costs: &Costs, task: &Task<'_>, bytes: u64) -> Result<Chosen, BudgetError> {
    planned(task, costs.allocate(bytes)?)
}

/// The search for the smallest file with at most this divergence. Files are proposed, made and
/// measured by the caller, who reports the result, until none is proposed any more.
pub struct Search<'a> {
    costs: &'a Costs,
    task: Task<'a>,
    wanted: f64,
    /// What is measured for each unit of what is predicted.
    factor: f64,
    /// The smallest that is known to be good, and what it diverges by.
    best: Option<(Chosen, f64)>,
    /// The most bytes of tensors that are known to be too few, and what they diverge by.
    failed: Option<(u64, f64)>,
    left: usize,
    tried: Vec<BTreeMap<String, TensorType>>,
}

impl<'a> Search<'a> {
    /// Begins a search.
    pub fn new(costs: &'a Costs, task: Task<'a>, kld: f64) -> Search<'a> {
        Search {
            costs,
            task,
            wanted: kld,
            factor: 1.0,
            best: None,
            failed: None,
            left: FILES,
            tried: Vec::new(),
        }
    }

    /// The next file to make and to measure.
    ///
    /// # Errors
    /// A type that can't be written.
    pub fn propose(&self) -> Result<Option<Chosen>, BudgetError> {
        let (smallest, largest) = self.costs.range();
        let low = self.failed.map_or(smallest, |(bytes, _)| bytes + 1);
        let high = match &self.best {
            Some((_, found)) if *found >= (1.0 - SLACK) * self.wanted => return Ok(None),
            Some((best, _)) => best.assignment.bytes - 1,
            None => largest,
        };
        if low > high || (self.left == 0 && self.best.is_some()) {
            return Ok(None);
        }
        let bytes = match self.left {
            // Enough was tried; this one is as good as a file can be.
            0 => high,
            _ => bytes_for(self.costs, AIM * self.wanted / self.factor, low, high)?,
        };
        let chosen = of_tensors(self.costs, &self.task, bytes)?;
        // More bytes don't always buy another choice.
        let is_new = !self.tried.contains(&chosen.assignment.types);
        Ok(is_new.then_some(chosen))
    }

    /// Tells what a file that was proposed diverges by.
    pub fn found(&mut self, chosen: Chosen, kld: f64) {
        self.left = self.left.saturating_sub(1);
        self.tried.push(chosen.assignment.types.clone());
        if kld > 0.0 && chosen.assignment.kld > 0.0 {
            self.factor = kld / chosen.assignment.kld;
        }
        if kld <= self.wanted {
            self.best = Some((chosen, kld));
        } else {
            self.failed = Some((chosen.assignment.bytes, kld));
        }
    }

    /// The smallest file that is good enough, and what it diverges by.
    ///
    /// # Errors
    /// [`BudgetError::Divergence`] where none is.
    pub fn finish(self) -> Result<(Chosen, f64), BudgetError> {
        self.best.ok_or(BudgetError::Divergence {
            wanted: self.wanted,
            least: self.failed.map_or(0.0, |(_, kld)| kld),
        })
    }
}

/// The fewest bytes of a range that are predicted to diverge by at most `kld`.
fn bytes_for(costs: &Costs, kld: f64, from: u64, to: u64) -> Result<u64, BudgetError> {
    let (mut low, mut high) = (from.min(to), to);
    while low < high {
        let middle = low + (high - low) / 2;
        if costs.allocate(middle)?.kld <= kld {
            high = middle
        } else {
            low = middle + 1
        }
    }
    Ok(low)
}

/// The file that has these types.
///
/// # Errors
/// A type that can't be written.
pub fn planned(task: &Task<'_>, assignment: Assignment) -> Result<Chosen, BudgetError> {
    let resolved = |rounding| resolve(&assignment.recipe(rounding), &task.subject);
    let plan = match resolved(task.rounding) {
        // Each tensor is copied, or plain floats, or reads what was not measured.
        Err(PlanError::NothingToRound) => resolved(Rounding::Nearest),
        plan => plan,
    }?;
    let bytes = stock_len(plan.metadata.clone(), &plan.stored()).ok_or(BudgetError::Overflow)?;
    Ok(Chosen {
        assignment,
        plan,
        bytes,
    })
}
