//! Fits each layer to the inputs that the compressed layers before it give.
//!
//! The original and a copy whose weights are replaced one layer after the other run side by side
//! over a text. Before a layer of the copy is computed, its weights are fitted to what it is about
//! to read (see [`refit`](crate::method::refit)), treated as the plan says, with the second moment
//! of that input, and replaced by what the file will hold. One pass over the model does it all.
//!
//! What the plan copies remains a copy. Experts, stacks over layers and embeddings are treated
//! without fitting, before the text is run.

use std::collections::HashMap;

use rayon::prelude::*;

use super::side_by_side::{FitError, FitText, ROWS_PER_ELEMENT, SideBySide};
use super::unfitted::{Reason, Unfitted};
use crate::architecture::{ModelTensor, role};
use crate::llama::activations::Reader;
use crate::llama::lockstep::Pair;
use crate::llama::model::Model;
use crate::method::refit::Moments;
use crate::plan::{Operand, Plan, TensorError, TransformError, Treatment};
use crate::writing::{ErrorSums, Factorizer, Fitted, Inputs, Made};

/// Fits the layers of a plan one after the other. `original` is the checkpoint, `running` the same
/// loaded so that its weights can be replaced; afterwards it is the compressed model. `done` is
/// called with the inputs that were worked on and their number. Returns the parts of what was
/// fitted, and the layers that were not.
///
/// # Errors
/// [`FitError`].
pub fn fit(
    plan: &Plan,
    inputs: &Inputs<'_>,
    [original, running]: [&Model; 2],
    text: &FitText<'_>,
    done: &mut dyn FnMut(usize, usize),
) -> Result<(Fitted, Vec<Unfitted>), FitError> {
    let mut models = SideBySide::new(original, running, text)?;
    let layers = models.inputs().to_vec();
    let mut fitting = Fitting::new(plan, inputs);
    let wanted: Vec<bool> = layers
        .iter()
        .map(|l| l.slices == 1 && l.readers.iter().any(|r| fitting.step_of(r).is_some()))
        .collect();
    let fittable = layers.iter().zip(&wanted).filter(|(_, wanted)| **wanted);
    let readers: Vec<&Reader> = fittable.flat_map(|(l, _)| &l.readers).collect();
    fitting.prepare(&readers, running)?;
    let total = wanted.iter().filter(|w| **w).count();
    let mut count = 0;
    models.run(&wanted, &mut |Pair { first, second }| {
        let layer = &layers[second.input];
        let fitted = fitting.layer(&layer.readers, layer.width, first, second.values)?;
        for (reader, made) in fitted {
            second.replace(&reader, &made)?;
        }
        count += 1;
        done(count, total);
        Ok(())
    })?;
    Ok((Fitted::new(fitting.steps), fitting.unfitted))
}

/// Tensors while they are fitted.
struct Fitting<'a> {
    plan: &'a Plan,
    inputs: &'a Inputs<'a>,
    factorizer: Factorizer<'a>,
    by_name: HashMap<&'a str, usize>,
    /// Whether a weight of the running model differs from the original's.
    has_changed: bool,
    steps: Vec<Option<(Vec<Vec<u8>>, ErrorSums)>>,
    unfitted: Vec<Unfitted>,
}

impl<'a> Fitting<'a> {
    fn new(plan: &'a Plan, inputs: &'a Inputs<'a>) -> Fitting<'a> {
        let tensors = inputs.subject.model.tensors.iter().enumerate();
        Fitting {
            plan,
            inputs,
            factorizer: Factorizer::new(plan, inputs),
            by_name: tensors.map(|(i, t)| (t.name.as_str(), i)).collect(),
            has_changed: false,
            steps: plan.steps.iter().map(|_| None).collect(),
            unfitted: Vec::new(),
        }
    }

    /// The step of a weight that can be fitted to its input: a matrix of a layer that changes, and
    /// does not share its factors with other layers.
    fn step_of(&self, reader: &Reader) -> Option<usize> {
        let step = *self.by_name.get(reader.weight.as_str())?;
        let tensor = self.tensor(step);
        let in_layer = role(&tensor.name).0.is_some();
        let alone = match &self.plan.steps[step].treatment {
            Treatment::Slice => false,
            Treatment::Store => self.is_quantized(step),
            other => other.stack().is_none_or(|members| members.len() == 1),
        };
        (in_layer && alone && tensor.shape.len() == 2).then_some(step)
    }

    /// Whether a tensor is rounded to a coarser type.
    fn is_quantized(&self, step: usize) -> bool {
        let tensor = self.tensor(step);
        let ty = self.plan.steps[step].stored.parts[0].ty;
        !tensor.always_f32
            && ty.is_quantized()
            && ty != tensor.source_type(self.inputs.subject.source)
    }

    fn tensor(&self, step: usize) -> &'a ModelTensor {
        &self.inputs.subject.model.tensors[step]
    }

    fn failed(&self, step: usize) -> impl Fn(TransformError) -> FitError + 'a {
        let failed = TensorError::of::<TransformError>(&self.tensor(step).name);
        move |source| failed(source).into()
    }

    /// Treats what is not fitted, so that the layers after it see what the file will hold.
    fn prepare(&mut self, fitted: &[&Reader], running: &Model) -> Result<(), FitError> {
        let fitted: Vec<usize> = fitted.iter().filter_map(|r| self.step_of(r)).collect();
        for step in 0..self.plan.steps.len() {
            let tensor = self.tensor(step);
            // What llama.cpp does not load has no effect on what follows.
            if fitted.contains(&step) || !running.has_weight(&tensor.name) {
                continue;
            }
            let treatment = &self.plan.steps[step].treatment;
            match treatment {
                // Written by the tensor that holds the stack, or not changed.
                Treatment::Slice => continue,
                Treatment::Store if !self.is_quantized(step) => continue,
                other if other.joint().is_some_and(|m| m[0] != step) => continue,
                _ => {}
            }
            let made = self.by_calibration(step).map_err(self.failed(step))?;
            if let Some(members) = treatment.stack() {
                let values = &made[0].1.values;
                let len = values.len() / members.len();
                for (member, values) in members.iter().zip(values.chunks(len)) {
                    running.replace(&self.tensor(*member).name, values)?;
                }
            } else {
                for (member, made) in &made {
                    running.replace(&self.tensor(*member).name, &made.values)?;
                }
            }
            if role(&tensor.name).0.is_some() {
                self.note_unseen(step, &made);
            }
            self.has_changed = true;
            tensor.release(self.inputs.subject.source);
            if !treatment.is_store() {
                self.keep(made);
            }
        }
        Ok(())
    }

    /// A step, with all that share its factors, from what calibration saw.
    fn by_calibration(&self, step: usize) -> Result<Vec<(usize, Made)>, TransformError> {
        let Some(members) = self.plan.steps[step].treatment.joint() else {
            return Ok(vec![(step, self.factorizer.make(step)?)]);
        };
        let tensors: Vec<&ModelTensor> = members.iter().map(|i| self.tensor(*i)).collect();
        let operand = Operand::joint(&self.inputs.subject, &tensors)?;
        let made = self.factorizer.make_joint(members, &operand, &operand.w)?;
        Ok(members.iter().copied().zip(made).collect())
    }

    fn keep(&mut self, made: Vec<(usize, Made)>) {
        for (step, made) in made {
            self.steps[step] = Some((made.parts, made.sums));
        }
    }

    /// The readers of one input, fitted to it.
    fn layer(
        &mut self,
        readers: &[Reader],
        width: usize,
        original: &[f32],
        now: &[f32],
    ) -> Result<Vec<(Reader, Vec<f32>)>, FitError> {
        let steps: Vec<(usize, &Reader)> = readers
            .iter()
            .filter_map(|r| Some((self.step_of(r)?, r)))
            .collect();
        let Some((any, _)) = steps.first() else {
            return Ok(Vec::new());
        };
        // Where nothing before has changed, or too little was seen, calibration knows more.
        let (tokens, needed) = (original.len() / width, ROWS_PER_ELEMENT * width);
        let is_enough = tokens >= needed;
        if self.has_changed && !is_enough {
            self.note(&steps, width, tokens);
        }
        let moments = (self.has_changed && is_enough)
            .then(|| Moments::of(original, now, width))
            .transpose()
            .map_err(|e| self.failed(*any)(TransformError::from(e)))?;
        let gram = moments.as_ref().map(Moments::gram);
        self.has_changed = true;
        let jobs = self.jobs(&steps);
        let made: Vec<Vec<(usize, Made)>> = jobs
            .par_iter()
            .map(|members| {
                self.treat(members, moments.as_ref().zip(gram.as_deref()))
                    .map_err(self.failed(members[0]))
            })
            .collect::<Result<_, _>>()?;
        let mut replaced = Vec::new();
        for (step, mut made) in made.into_iter().flatten() {
            self.tensor(step).release(self.inputs.subject.source);
            if let Some((_, reader)) = steps.iter().find(|(s, _)| *s == step) {
                replaced.push(((*reader).clone(), std::mem::take(&mut made.values)));
            }
            self.keep(vec![(step, made)]);
        }
        Ok(replaced)
    }

    /// Notes a weight of a layer, and those treated with it, that have no input of their own to be
    /// fitted to.
    fn note_unseen(&mut self, step: usize, made: &[(usize, Made)]) {
        let tensor = self.tensor(step);
        let members: Vec<usize> = match self.plan.steps[step].treatment.stack() {
            Some(members) => members.to_vec(),
            None => made.iter().map(|(member, _)| *member).collect(),
        };
        let is_stack = members.len() > 1 || tensor.shape.len() > 2;
        let names = members.iter().map(|i| self.tensor(*i).name.clone());
        self.unfitted.push(Unfitted {
            weights: names.collect(),
            width: tensor.row_len() as usize,
            reason: if is_stack {
                Reason::Stacked
            } else {
                Reason::Unseen
            },
        });
    }

    /// Notes layers whose input was seen too little of.
    fn note(&mut self, steps: &[(usize, &Reader)], width: usize, tokens: usize) {
        let name = |(step, _): &(usize, &Reader)| self.tensor(*step).name.clone();
        let weights: Vec<String> = steps.iter().map(name).collect();
        let statistics = self.inputs.subject.measured.statistics;
        let is_known = |weight: &String| {
            statistics.is_some_and(|s| s.group(weight).is_some_and(|g| g.blocks.len() == 1))
        };
        self.unfitted.push(Unfitted {
            width,
            reason: Reason::TooFewTokens {
                tokens,
                needed: ROWS_PER_ELEMENT * width,
                measured: weights.iter().all(is_known),
            },
            weights,
        });
    }

    /// Steps that are treated together.
    fn jobs(&self, steps: &[(usize, &Reader)]) -> Vec<Vec<usize>> {
        let mut jobs: Vec<Vec<usize>> = Vec::new();
        for (step, _) in steps {
            let joint = self.plan.steps[*step].treatment.joint();
            let job = joint.map_or_else(|| vec![*step], <[usize]>::to_vec);
            if !jobs.contains(&job) {
                jobs.push(job);
            }
        }
        jobs
    }

    fn treat(
        &self,
        members: &[usize],
        moments: Option<(&Moments, &[f32])>,
    ) -> Result<Vec<(usize, Made)>, TransformError> {
        let Some((moments, gram)) = moments else {
            return self.by_calibration(members[0]);
        };
        let (mut original, mut fitted) = (Vec::new(), Vec::new());
        for member in members {
            let tensor = self.tensor(*member);
            let rows = tensor.row_count();
            let w = self.inputs.subject.values(tensor)?;
            fitted.extend(moments.refit(&w, rows as usize)?);
            original.extend(w);
        }
        let cols = self.tensor(members[0]).row_len() as usize;
        let operand = Operand::with_gram(fitted, cols, gram);
        if self.plan.steps[members[0]].treatment.joint().is_some() {
            let made = self.factorizer.make_joint(members, &operand, &original)?;
            return Ok(members.iter().copied().zip(made).collect());
        }
        let made = self
            .factorizer
            .make_of(members[0], &[operand], Some(&original))?;
        Ok(vec![(members[0], made)])
    }
}
