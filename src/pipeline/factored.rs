//! Factored tensors on their way into the file: computed, stored in their types, and held against
//! what they stand for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::contract::multiply_out;
use super::execute::Inputs;
use super::factor;
use super::transform::{ErrorSums, round_trip};
use crate::architecture::ModelTensor;
use crate::plan::{Operand, Plan, TransformError, Treatment};

/// The bytes of a tensor's parts, and what they lost.
pub(super) type Made = (Vec<Vec<u8>>, ErrorSums);

/// Computes the factored tensors of a plan.
pub(super) struct Factorizer<'a> {
    plan: &'a Plan,
    inputs: &'a Inputs<'a>,
    /// By the first member of each group: what its members share until the last has taken its part.
    joint: Mutex<HashMap<usize, Arc<Mutex<Joint>>>>,
}

/// Factors of several tensors that were computed together.
#[derive(Default)]
struct Joint {
    /// The input's factor, and each member's own.
    factors: Option<(Vec<f32>, Vec<Vec<f32>>)>,
    taken: usize,
}

impl<'a> Factorizer<'a> {
    pub fn new(plan: &'a Plan, inputs: &'a Inputs<'a>) -> Factorizer<'a> {
        Factorizer {
            plan,
            inputs,
            joint: Mutex::default(),
        }
    }

    /// The parts of one step.
    pub fn make(&self, step: usize) -> Result<Made, TransformError> {
        let Inputs {
            source, measured, ..
        } = *self.inputs;
        let tensor = self.tensor(step);
        let one = || Operand::slice(tensor, 0, source, &measured);
        match &self.plan.steps[step].treatment {
            Treatment::LowRank { rank } => {
                let slices = tensor.shape.get(2).copied().unwrap_or(1);
                let (mut w, mut a, mut b) = (Vec::new(), Vec::new(), Vec::new());
                for slice in 0..slices as usize {
                    let operand = Operand::slice(tensor, slice, source, &measured)?;
                    let factors = factor::low_rank(&operand, *rank)?;
                    a.extend(factors.a);
                    b.extend(factors.b);
                    w.extend(operand.w);
                }
                self.stored(step, &w, &[a, b], None)
            }
            Treatment::Joint { members, rank } => self.joint(step, members, *rank),
            Treatment::SparseLowRank {
                pruning,
                pattern,
                rank,
            } => {
                let operand = one()?;
                let parts = factor::sparse_low_rank(&operand, *pruning, *pattern, *rank)?;
                self.stored(step, &operand.w, &parts, None)
            }
            Treatment::Multilinear { factors, stack } => {
                let tensors: Vec<&ModelTensor> =
                    stack.members.iter().map(|i| self.tensor(*i)).collect();
                let operand = Operand::stack(&tensors, stack.over, source, &measured)?;
                let parts = factor::multilinear(&operand, stack.dims, factors)?;
                self.stored(step, &operand.w, &parts, None)
            }
            Treatment::Operator { rows, cols, ranks } => {
                let operand = one()?;
                let parts = factor::operator(&operand, rows, cols, ranks)?;
                self.stored(step, &operand.w, &parts, None)
            }
            Treatment::Store | Treatment::Prune { .. } | Treatment::Slice => {
                Ok((Vec::new(), ErrorSums::default()))
            }
        }
    }

    fn tensor(&self, step: usize) -> &'a ModelTensor {
        &self.inputs.model.tensors[step]
    }

    /// Parts in their types, and what is lost by all slices that they stand for.
    fn stored(
        &self,
        step: usize,
        w: &[f32],
        parts: &[Vec<f32>],
        input: Option<&[f32]>,
    ) -> Result<Made, TransformError> {
        let stored = &self.plan.steps[step].stored;
        let (mut bytes, mut back) = (Vec::new(), Vec::new());
        for (part, values) in stored.parts.iter().zip(parts) {
            let (encoded, values) = round_trip(part.ty, values, part.shape[0] as usize)?;
            bytes.push(encoded);
            back.push(values);
        }
        let mut sums = ErrorSums::default();
        let elements = stored.shape.iter().product::<u64>() as usize;
        for (slice, w) in w.chunks_exact(elements).enumerate() {
            sums.add(ErrorSums::of(w, &multiply_out(stored, &back, input, slice)));
        }
        Ok((bytes, sums))
    }

    fn joint(&self, step: usize, members: &[usize], rank: usize) -> Result<Made, TransformError> {
        let Inputs {
            source, measured, ..
        } = *self.inputs;
        let shared = {
            let mut groups = self.joint.lock().unwrap_or_else(PoisonError::into_inner);
            groups.entry(members[0]).or_default().clone()
        };
        let (a, b) = {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.factors.is_none() {
                let tensors: Vec<&ModelTensor> = members.iter().map(|i| self.tensor(*i)).collect();
                let operand = Operand::joint(&tensors, source, &measured)?;
                let rows: Vec<usize> = tensors.iter().map(|t| t.row_count() as usize).collect();
                shared.factors = Some(factor::joint(&operand, &rows, rank)?);
            }
            shared.taken += 1;
            let last = shared.taken == members.len();
            let place = members.iter().position(|m| *m == step).unwrap_or(0);
            let taken = match &mut shared.factors {
                Some((a, b)) => (a.clone(), std::mem::take(&mut b[place])),
                None => (Vec::new(), Vec::new()),
            };
            if last {
                let mut groups = self.joint.lock().unwrap_or_else(PoisonError::into_inner);
                groups.remove(&members[0]);
            }
            taken
        };
        let w = Operand::slice(self.tensor(step), 0, source, &measured)?.w;
        if step == members[0] {
            return self.stored(step, &w, &[a, b], None);
        }
        // The other members multiply the input's factor as it is stored.
        let holder = &self.plan.steps[members[0]].stored.parts[0];
        let (_, input) = round_trip(holder.ty, &a, holder.shape[0] as usize)?;
        self.stored(step, &w, &[b], Some(&input))
    }
}
