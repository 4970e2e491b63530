//! Divides a file among several, as llama-gguf-split does, before any of them is written.

use std::ops::Range;
use std::path::{Path, PathBuf};

use dwindle_formats::container::{StoredPlan, hex, stock_len};
use dwindle_formats::gguf::{DEFAULT_ALIGNMENT, Metadata, part_metadata, part_name};

use super::inputs::Inputs;
use super::resources::Options;
use crate::plan::Plan;

/// One file of an output: all of it, or a part.
#[derive(Debug, Clone)]
pub struct OutputFile {
    /// Where it goes.
    pub path: PathBuf,
    /// Steps of the plan whose tensors it has.
    pub steps: Range<usize>,
    /// The model's metadata, or what another part than the first has instead.
    pub metadata: Metadata,
    /// Its length, if its payloads are not compressed.
    pub bytes: u64,
}

impl OutputFile {
    /// All of a plan in one file.
    pub fn whole(plan: &Plan, path: &Path) -> OutputFile {
        OutputFile {
            path: path.to_path_buf(),
            steps: 0..plan.steps.len(),
            metadata: plan.metadata.clone(),
            bytes: len_of(&plan.stored(), &plan.metadata),
        }
    }
}

fn len_of(stored: &StoredPlan, metadata: &Metadata) -> u64 {
    stock_len(metadata.clone(), stored).unwrap_or(u64::MAX)
}

/// The most parts that there may be: their numbers have 16 bits.
const MOST_PARTS: usize = u16::MAX as usize;

/// Why an output can't be divided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum DivisionError {
    #[error(
        "a file with tensor `{tensor}` and the metadata takes {needed} bytes, more than the {most} that a file may have; allow larger files"
    )]
    Large {
        tensor: String,
        needed: u64,
        most: u64,
    },
    #[error(
        "files of at most {most} bytes would be {count} parts, more than the {MOST_PARTS} that llama.cpp counts; allow larger files"
    )]
    Many { count: usize, most: u64 },
}

/// A plan's output in files of at most `most` bytes each, or in one where that suffices or there is no limit.
///
/// # Errors
/// [`DivisionError`].
pub fn divide(
    plan: &Plan,
    inputs: &Inputs<'_>,
    output: &Path,
    (most, options): (Option<u64>, Options),
) -> Result<Vec<OutputFile>, DivisionError> {
    let whole = OutputFile::whole(plan, output);
    let stored = plan.stored();
    let Some(most) = most.filter(|most| whole.bytes > *most) else {
        return Ok(vec![whole]);
    };
    let data = |steps: Range<usize>| -> u64 {
        let parts = stored.tensors[steps].iter().flat_map(|t| &t.parts);
        parts
            .map(|p| p.bytes().next_multiple_of(DEFAULT_ALIGNMENT))
            .sum()
    };
    let key = hex(&inputs.fingerprint(plan, options).finish());
    // No part's header is longer than that of the whole file and what says that it is a part.
    let all = 0..plan.steps.len();
    let metadata = part_metadata(plan.metadata.clone(), (0, 1), plan.steps.len(), &key);
    let header = len_of(&stored, &metadata).saturating_sub(data(all));
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut room = 0;
    for step in 0..plan.steps.len() {
        let bytes = data(step..step + 1);
        if header + bytes > most {
            return Err(DivisionError::Large {
                tensor: stored.tensors[step].name.clone(),
                needed: header + bytes,
                most,
            });
        }
        match ranges.last_mut().filter(|_| bytes <= room) {
            Some(range) => range.end = step + 1,
            None => {
                ranges.push(step..step + 1);
                room = most - header;
            }
        }
        room -= bytes;
    }
    let count = ranges.len();
    if count > MOST_PARTS {
        return Err(DivisionError::Many { count, most });
    }
    let file = |(number, steps): (usize, Range<usize>)| {
        let own = match number {
            0 => plan.metadata.clone(),
            _ => Metadata::new(),
        };
        let metadata = part_metadata(own, (number, count), plan.steps.len(), &key);
        OutputFile {
            path: part_name(output, number + 1, count),
            bytes: len_of(&part_of(&stored, &steps), &metadata),
            steps,
            metadata,
        }
    };
    Ok(ranges.into_iter().enumerate().map(file).collect())
}

/// What a file has of a plan.
pub(super) fn part_of(stored: &StoredPlan, steps: &Range<usize>) -> StoredPlan {
    StoredPlan {
        tensors: stored.tensors[steps.clone()].to_vec(),
    }
}
