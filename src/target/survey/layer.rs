//! What a layer reads, summed, and the types of its weights.

use std::ops::Range;

use dwindle_formats::gguf::TensorType;
use rayon::prelude::*;

use super::super::candidates::{Candidate, Known, TensorCandidates, judge};
use super::{BudgetError, Surveyed, Task};
use crate::blockwise::{MOST_SUMS, WIDEST};
use crate::method::drift::blocks;
use crate::method::error::MethodError;
use crate::method::gram::Gram;
use crate::method::rounding::{Curvature, Curvatures, DAMPING};
use crate::statistics::{Accumulator, add_panels};

/// The widest input of an output layer that is summed whole: its weights are rounded by that, and not in blocks.
const WIDEST_OUTPUT: usize = 8192;

/// The sums of one input.
pub struct Sums {
    width: usize,
    blocks: Vec<Range<usize>>,
    /// Products, and squares where the products are of all slices together.
    all: Vec<Accumulator>,
}

impl Sums {
    /// Of an input of one layer or more.
    pub fn new(width: usize, slices: usize) -> Sums {
        Sums::in_blocks(width, slices, WIDEST)
    }

    /// Of what the output layer reads.
    pub fn of_output(width: usize) -> Sums {
        Sums::in_blocks(width, 1, WIDEST_OUTPUT)
    }

    fn in_blocks(width: usize, slices: usize, widest: usize) -> Sums {
        let blocks = blocks(width, widest);
        let all = if Accumulator::bytes(width, slices, &blocks) <= MOST_SUMS || slices == 1 {
            vec![Accumulator::new(width, slices, &blocks)]
        } else {
            vec![
                Accumulator::new(width, 1, &blocks),
                Accumulator::new(width, slices, &[]),
            ]
        };
        Sums { width, blocks, all }
    }

    /// Adds rows, with those that go to each slice where there are several.
    pub fn add(&mut self, rows: &[f32], slices: Option<&[Vec<u32>]>) {
        match &mut self.all[..] {
            [one] => {
                one.push(rows, slices);
            }
            [shared, own, ..] => {
                // As often as experts read them.
                for routed in slices.into_iter().flatten() {
                    for row in routed {
                        let at = *row as usize * self.width;
                        shared.push(&rows[at..at + self.width], None);
                    }
                }
                own.push(rows, slices);
            }
            [] => {}
        }
        add_panels(&mut self.all);
    }

    /// Ends the sums.
    pub fn close(&mut self) {
        self.all.iter_mut().for_each(Accumulator::close);
        add_panels(&mut self.all);
    }

    /// Whether all are numbers.
    pub fn is_finite(&self) -> bool {
        self.all.iter().all(Accumulator::is_finite)
    }

    /// The sums themselves.
    pub fn into_accumulator(mut self) -> Accumulator {
        self.all.swap_remove(0)
    }

    /// The mean squares of each slice's columns, one slice after another; those of a slice without rows
    /// are ones.
    pub fn importance(&self) -> Vec<f32> {
        let own = &self.all[self.all.len() - 1];
        let slices: Vec<u64> = own.rows().collect();
        let of_slice = |(slice, rows): (usize, &u64)| match rows {
            0 => vec![1.0; self.width],
            _ => own.diagonal(slice),
        };
        slices.iter().enumerate().flat_map(of_slice).collect()
    }

    /// The curvature of each slice's input, or of all.
    ///
    /// # Errors
    /// Sums that can't be those of rows.
    pub fn curvatures(&self) -> Result<Vec<Curvatures>, MethodError> {
        let sums = &self.all[0];
        let slices = sums.rows().count();
        let pairs: Vec<(usize, &Range<usize>)> = (0..slices)
            .flat_map(|slice| self.blocks.iter().map(move |b| (slice, b)))
            .collect();
        let made: Vec<(Range<usize>, Curvature)> = pairs
            .par_iter()
            .map(|(slice, block)| {
                let mut values = Vec::with_capacity(block.len() * block.len());
                sums.gram_rows(*slice, block, |rows| {
                    values.extend_from_slice(rows);
                    Ok::<(), MethodError>(())
                })?;
                let gram = Gram::new(&values, block.len())?;
                Ok(((*block).clone(), Curvature::new(gram, DAMPING)?))
            })
            .collect::<Result<_, MethodError>>()?;
        let mut made = made.into_iter();
        Ok((0..slices)
            .map(|_| made.by_ref().take(self.blocks.len()).collect())
            .collect())
    }
}

/// Judges tensors by what they read.
pub fn judged(
    task: &Task<'_>,
    tensors: &[usize],
    sums: &Sums,
) -> Result<Vec<Surveyed>, BudgetError> {
    let curvatures = sums.curvatures()?;
    let importance = sums.importance();
    let known = Known {
        curvatures: &curvatures,
        importance: &importance,
    };
    let one = |index: &usize| -> Result<Surveyed, BudgetError> {
        Ok(Surveyed {
            candidates: candidates(task, *index, Some(&known))?,
            importance: importance.clone(),
            kld: 0.0,
        })
    };
    tensors.iter().map(one).collect()
}

/// A tensor's candidates; none where no types are to be judged.
pub fn candidates(
    task: &Task<'_>,
    index: usize,
    known: Option<&Known<'_>>,
) -> Result<TensorCandidates, BudgetError> {
    if task.types.is_empty() {
        return Ok(TensorCandidates {
            index,
            name: task.subject.model.tensors[index].name.clone(),
            all: Vec::new(),
            probe: Candidate {
                ty: TensorType::F16,
                bytes: 0,
                error: 0.0,
            },
        });
    }
    judge(&task.subject, index, (task.types, task.rounding), known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_output_layer_reads_is_summed_whole() {
        assert_eq!(Sums::of_output(4096).blocks.len(), 1);
        assert_eq!(Sums::new(4096, 1).blocks.len(), 2);
    }
}
