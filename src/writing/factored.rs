//! Tensors that are computed whole on their way into the file: transformed, stored in their types,
//! and held against what they stand for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use dwindle_formats::gguf::TensorType;

use super::contract::multiply_out;
use super::inputs::Inputs;
use super::transform::{ErrorSums, encode, round_trip};
use crate::architecture::ModelTensor;
use crate::ggml;
use crate::method::rounding::{Curvature, DAMPING, round};
use crate::plan::{Operand, Operands, Plan, TransformError, Treatment};

/// A tensor as the file holds it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Made {
    /// The bytes of its parts.
    pub parts: Vec<Vec<u8>>,
    /// What they stand for; of a stack over layers, all its layers.
    pub values: Vec<f32>,
    /// What that lost.
    pub sums: ErrorSums,
}

impl Made {
    /// A dense tensor that stands for W.
    fn dense(ty: TensorType, bytes: Vec<u8>, w: &[f32]) -> Result<Made, TransformError> {
        let mut values = vec![0f32; w.len()];
        ggml::dequantize(ty, &bytes, &mut values)?;
        Ok(Made {
            parts: vec![bytes],
            sums: ErrorSums::of(w, &values),
            values,
        })
    }
}

/// Computes the tensors of a plan.
pub(crate) struct Factorizer<'a> {
    plan: &'a Plan,
    inputs: &'a Inputs<'a>,
    /// By the first member of each group: what was made for all until the last has taken its own.
    joint: Mutex<HashMap<usize, Arc<Mutex<Shared>>>>,
}

/// Tensors that were computed together.
#[derive(Default)]
struct Shared {
    made: Option<Vec<Made>>,
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

    /// One step, from the checkpoint and the calibration's inputs.
    pub fn make(&self, step: usize) -> Result<Made, TransformError> {
        let subject = &self.inputs.subject;
        let tensor = self.tensor(step);
        let operands = match &self.plan.steps[step].treatment {
            Treatment::Slice => return Ok(Made::default()),
            Treatment::Store => vec![Operand::unmeasured(subject.values(tensor)?, tensor)],
            Treatment::Round => self.matrices(tensor)?,
            Treatment::Made { of, .. } => match of {
                Operands::Matrices => self.matrices(tensor)?,
                Operands::Stack { over, members } => {
                    vec![Operand::stack(subject, &self.tensors(members), *over)?]
                }
                Operands::Joint(members) => return self.take_joint(step, members),
            },
        };
        self.make_of(step, &operands, None)
    }

    /// Each matrix of a tensor.
    fn matrices(&self, tensor: &ModelTensor) -> Result<Vec<Operand<'a>>, TransformError> {
        let slice = |slice| Operand::slice(&self.inputs.subject, tensor, slice);
        (0..tensor.slices()).map(slice).collect()
    }

    fn tensors(&self, members: &[usize]) -> Vec<&'a ModelTensor> {
        members.iter().map(|i| self.tensor(*i)).collect()
    }

    fn tensor(&self, step: usize) -> &'a ModelTensor {
        &self.inputs.subject.model.tensors[step]
    }

    /// One step that is computed for itself, from operands: one a slice of a stack of matrices, else
    /// one. What is lost counts against `original`, where that is not what the operands hold.
    pub fn make_of(
        &self,
        step: usize,
        operands: &[Operand<'_>],
        original: Option<&[f32]>,
    ) -> Result<Made, TransformError> {
        let w: std::borrow::Cow<'_, [f32]> = match (original, operands) {
            (Some(original), _) => original.into(),
            (None, [one]) => (&one.w).into(),
            (None, many) => many.iter().flat_map(|o| &o.w).copied().collect(),
        };
        match &self.plan.steps[step].treatment {
            Treatment::Store => self.dense(step, &operands[0].w, &w),
            Treatment::Round => self.rounded(step, operands, &w),
            Treatment::Made { by, .. } => {
                let parts = by.parts(operands)?;
                match &parts[..] {
                    [values] if self.plan.steps[step].is_dense() => self.dense(step, values, &w),
                    parts => self.stored(step, &w, parts, None),
                }
            }
            Treatment::Slice => Ok(Made::default()),
        }
    }

    /// A dense tensor in its type, weighted by the calibration's importance.
    fn dense(&self, step: usize, values: &[f32], w: &[f32]) -> Result<Made, TransformError> {
        let tensor = self.tensor(step);
        let ty = self.plan.steps[step].stored.parts[0].ty;
        let importance = self.inputs.subject.measured.importance;
        let bytes = encode(ty, values, tensor, 0..tensor.row_count(), importance)?;
        Made::dense(ty, bytes, w)
    }

    /// A dense tensor in a quantized type, each of its operands rounded for what it reads.
    fn rounded(
        &self,
        step: usize,
        operands: &[Operand<'_>],
        w: &[f32],
    ) -> Result<Made, TransformError> {
        let tensor = self.tensor(step);
        let ty = self.plan.steps[step].stored.parts[0].ty;
        let mut bytes = Vec::new();
        for (slice, operand) in operands.iter().enumerate() {
            let weights = self.inputs.subject.measured.importance;
            let weights = weights.and_then(|i| i.columns(&tensor.name, operand.cols, slice));
            let curvature = match operand.gram() {
                Some(gram) => Curvature::new(gram, DAMPING)?,
                None => return self.dense(step, &operand.w, w),
            };
            let rows = operand.w.len() / operand.cols;
            bytes.extend(round(&operand.w, rows, &curvature, ty, weights)?);
        }
        Made::dense(ty, bytes, w)
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
        let elements = stored.shape.iter().product::<u64>() as usize;
        let mut values = Vec::with_capacity(w.len());
        for slice in 0..w.len() / elements {
            values.extend(multiply_out(stored, &back, input, slice));
        }
        Ok(Made {
            parts: bytes,
            sums: ErrorSums::of(w, &values),
            values,
        })
    }

    /// All members of a joint group, from one operand that holds them one after another; what is
    /// lost counts against `original`.
    pub fn make_joint(
        &self,
        members: &[usize],
        operand: &Operand<'_>,
        original: &[f32],
    ) -> Result<Vec<Made>, TransformError> {
        let Treatment::Made { by, .. } = &self.plan.steps[members[0]].treatment else {
            return Ok(Vec::new());
        };
        let mut parts = by.parts(std::slice::from_ref(operand))?.into_iter();
        let mut input = None;
        let mut rest = original;
        let mut made = Vec::new();
        for &member in members {
            let stored = &self.plan.steps[member].stored;
            let own: Vec<Vec<f32>> = parts.by_ref().take(stored.parts.len()).collect();
            let elements = stored.shape.iter().product::<u64>() as usize;
            let (w, others) = rest.split_at(elements);
            rest = others;
            made.push(self.stored(member, w, &own, input.as_deref())?);
            // The other members multiply the input's factor as it is stored.
            if member == members[0] {
                let holder = &stored.parts[0];
                let (_, as_stored) = round_trip(holder.ty, &own[0], holder.shape[0] as usize)?;
                input = Some(as_stored);
            }
        }
        Ok(made)
    }

    fn take_joint(&self, step: usize, members: &[usize]) -> Result<Made, TransformError> {
        let subject = &self.inputs.subject;
        let shared = {
            let mut groups = self.joint.lock().unwrap_or_else(PoisonError::into_inner);
            groups.entry(members[0]).or_default().clone()
        };
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.made.is_none() {
            let operand = Operand::joint(subject, &self.tensors(members))?;
            let mut made = self.make_joint(members, &operand, &operand.w)?;
            made.iter_mut().for_each(|m| m.values = Vec::new());
            shared.made = Some(made);
        }
        shared.taken += 1;
        if shared.taken == members.len() {
            let mut groups = self.joint.lock().unwrap_or_else(PoisonError::into_inner);
            groups.remove(&members[0]);
        }
        let place = members.iter().position(|m| *m == step).unwrap_or(0);
        let made = shared.made.as_mut();
        Ok(made.map_or_else(Made::default, |all| std::mem::take(&mut all[place])))
    }
}
