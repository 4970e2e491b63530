//! Fitting each layer to the inputs that the compressed layers before it give.
//!
//! The original and a copy whose weights are replaced one layer after the other run side by side
//! over a text. Before a layer of the copy is computed, its weights are fitted to what it is about to
//! read (see [`refit`](crate::method::refit)), treated as the plan says, with the second moment of
//! that input, and replaced by what the file will hold. One pass over the model does it all.
//!
//! What the plan copies stays a copy. Experts, stacks over layers and embeddings are treated without
//! fitting, before the text is run.

use std::collections::HashMap;
use std::ops::ControlFlow;

use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::execute::Inputs;
use super::factored::{Factorizer, Made};
use super::transform::ErrorSums;
use crate::architecture::{self, ModelTensor};
use crate::eval::{Chunks, EvalError, EvalOptions};
use crate::llama::activations::{Probe, Reader};
use crate::llama::context::{ContextOptions, default_threads};
use crate::llama::lockstep::{Pair, lockstep};
use crate::llama::model::{LlamaError, Model};
use crate::method::refit::Moments;
use crate::plan::{Operand, Plan, TransformError, Treatment};

/// Logits that llama.cpp may compute on the way, which nobody needs: 512 MiB.
const MAX_LOGITS: usize = 1 << 27;

/// The most sequences of a llama.cpp context.
const MAX_SEQUENCES: usize = 256;

/// What the layers are fitted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FitOptions {
    /// Tokens of a chunk.
    pub ctx: u32,
    /// Chunks, all evaluated at once.
    pub chunks: usize,
    /// Threads, `None` for one per physical core.
    pub threads: Option<u32>,
}

/// Why layers can't be fitted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum FitError {
    #[error(transparent)]
    Text(#[from] EvalError),
    #[error(transparent)]
    Llama(#[from] LlamaError),
    #[error("tensor `{tensor}`: {source}")]
    Transform {
        tensor: String,
        source: TransformError,
    },
}

/// The parts of fitted tensors, as the file will hold them.
#[derive(Debug)]
pub struct Fitted {
    steps: Vec<Option<(Vec<Vec<u8>>, ErrorSums)>>,
    digest: [u8; 32],
}

impl Fitted {
    /// The parts of a step and what they lost, if the step was fitted.
    pub(super) fn get(&self, step: usize) -> Option<(&[Vec<u8>], ErrorSums)> {
        let (parts, sums) = self.steps.get(step)?.as_ref()?;
        Some((parts, *sums))
    }

    /// A digest of all parts.
    pub(super) fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// How many tensors were fitted.
    pub fn count(&self) -> usize {
        self.steps.iter().flatten().count()
    }
}

/// Fits the layers of a plan one after the other. `original` is the checkpoint, `running` the same
/// loaded so that its weights can be replaced; afterwards it is the compressed model. `done` is
/// called with the inputs that were worked on and their number.
///
/// # Errors
/// [`FitError`].
pub fn fit(
    plan: &Plan,
    inputs: &Inputs<'_>,
    original: &Model,
    running: &Model,
    text: &str,
    options: &FitOptions,
    done: &mut dyn FnMut(usize, usize),
) -> Result<Fitted, FitError> {
    let chunks = options.chunks.clamp(1, MAX_SEQUENCES);
    let cut = EvalOptions {
        ctx: options.ctx,
        chunks: Some(chunks),
        ..EvalOptions::default()
    };
    let chunks = Chunks::cut(original, text, &cut)?;
    let mut tokens = chunks.batch(original, 0..chunks.count, 0..chunks.ctx);
    // Only tokens that want logits reach the last layer's end.
    let stride = (tokens.len() * original.n_vocab())
        .div_ceil(MAX_LOGITS)
        .max(1);
    for (i, token) in tokens.iter_mut().enumerate() {
        token.logits = i % stride == 0;
    }
    let context = ContextOptions {
        ctx: options.ctx,
        sequences: chunks.count as u32,
        batch: tokens.len() as u32,
        ubatch: tokens.len() as u32,
        threads: Some(options.threads.unwrap_or_else(default_threads)),
        ..ContextOptions::default()
    };
    let mut first = Probe::new(original, &context)?;
    let mut second = Probe::new(running, &context)?;
    let layers = second.inputs().to_vec();
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
    let mut failed = None;
    let shown = lockstep(
        &mut first,
        &mut second,
        &tokens,
        &wanted,
        &mut |Pair { first, second }| {
            let layer = &layers[second.input];
            let fitted = fitting.layer(&layer.readers, layer.width, first, second.values);
            let replaced = fitted.and_then(|made| {
                for (reader, made) in made {
                    second.replace(&reader, &made)?;
                }
                Ok(())
            });
            count += 1;
            done(count, total);
            match replaced {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        },
    );
    match failed {
        Some(error) => return Err(error),
        None => shown?,
    }
    Ok(fitting.finish())
}

/// Tensors while they are fitted.
struct Fitting<'a> {
    plan: &'a Plan,
    inputs: &'a Inputs<'a>,
    factorizer: Factorizer<'a>,
    by_name: HashMap<&'a str, usize>,
    steps: Vec<Option<(Vec<Vec<u8>>, ErrorSums)>>,
}

impl<'a> Fitting<'a> {
    fn new(plan: &'a Plan, inputs: &'a Inputs<'a>) -> Fitting<'a> {
        let tensors = inputs.model.tensors.iter().enumerate();
        Fitting {
            plan,
            inputs,
            factorizer: Factorizer::new(plan, inputs),
            by_name: tensors.map(|(i, t)| (t.name.as_str(), i)).collect(),
            steps: plan.steps.iter().map(|_| None).collect(),
        }
    }

    /// The step of a weight that can be fitted to its input: a matrix of a layer that changes, and
    /// does not share its factors with other layers.
    fn step_of(&self, reader: &Reader) -> Option<usize> {
        let step = *self.by_name.get(reader.weight.as_str())?;
        let tensor = self.tensor(step);
        let in_layer = architecture::role(&tensor.name).0.is_some();
        let alone = match &self.plan.steps[step].treatment {
            Treatment::Slice => false,
            Treatment::Multilinear { stack, .. } => stack.members.len() == 1,
            Treatment::Store => {
                self.plan.steps[step].stored.parts[0].ty != tensor.source_type(self.inputs.source)
            }
            _ => true,
        };
        (in_layer && alone && tensor.shape.len() == 2).then_some(step)
    }

    fn tensor(&self, step: usize) -> &'a ModelTensor {
        &self.inputs.model.tensors[step]
    }

    fn failed(&self, step: usize) -> impl Fn(TransformError) -> FitError {
        let tensor = self.tensor(step).name.clone();
        move |source| FitError::Transform {
            tensor: tensor.clone(),
            source,
        }
    }

    /// Treats what is not fitted, so that the layers after it see what the file will hold.
    fn prepare(&mut self, fitted: &[&Reader], running: &Model) -> Result<(), FitError> {
        let fitted: Vec<usize> = fitted.iter().filter_map(|r| self.step_of(r)).collect();
        for step in 0..self.plan.steps.len() {
            let tensor = self.tensor(step);
            let changes = self.plan.steps[step].treatment != Treatment::Store;
            if fitted.contains(&step) || !changes || tensor.shape.len() < 2 {
                continue;
            }
            let made = self.factorizer.make(step).map_err(self.failed(step))?;
            match &self.plan.steps[step].treatment {
                // Written by the tensor that holds the stack.
                Treatment::Slice => continue,
                Treatment::Multilinear { stack, .. } => {
                    let len = made.values.len() / stack.members.len();
                    for (member, values) in stack.members.iter().zip(made.values.chunks(len)) {
                        running.replace(&self.tensor(*member).name, values)?;
                    }
                }
                _ => running.replace(&tensor.name, &made.values)?,
            }
            self.steps[step] = Some((made.parts, made.sums));
            tensor.release(self.inputs.source);
        }
        Ok(())
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
        let moments = Moments::of(original, now, width)
            .map_err(|e| self.failed(*any)(TransformError::from(e)))?;
        // Nothing before has changed: what calibration saw is more.
        let moments = (original != now).then_some(moments);
        let gram = moments.as_ref().map(Moments::gram);
        let jobs = self.jobs(&steps);
        let made: Vec<Vec<(usize, Made)>> = jobs
            .par_iter()
            .map(|members| {
                self.treat(members, moments.as_ref().zip(gram.as_deref()))
                    .map_err(self.failed(members[0]))
            })
            .collect::<Result<_, _>>()?;
        let mut replaced = Vec::new();
        for (step, made) in made.into_iter().flatten() {
            self.steps[step] = Some((made.parts, made.sums));
            self.tensor(step).release(self.inputs.source);
            if let Some((_, reader)) = steps.iter().find(|(s, _)| *s == step) {
                replaced.push(((*reader).clone(), made.values));
            }
        }
        Ok(replaced)
    }

    /// Steps that are treated together.
    fn jobs(&self, steps: &[(usize, &Reader)]) -> Vec<Vec<usize>> {
        let mut jobs: Vec<Vec<usize>> = Vec::new();
        for (step, _) in steps {
            let job = match &self.plan.steps[*step].treatment {
                Treatment::Joint { members, .. } => members.clone(),
                _ => vec![*step],
            };
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
        let is_joint = matches!(
            self.plan.steps[members[0]].treatment,
            Treatment::Joint { .. }
        );
        let Some((moments, gram)) = moments else {
            if !is_joint {
                return Ok(vec![(members[0], self.factorizer.make(members[0])?)]);
            }
            let tensors: Vec<&ModelTensor> = members.iter().map(|i| self.tensor(*i)).collect();
            let operand = Operand::joint(&tensors, self.inputs.source, &self.inputs.measured)?;
            let made = self.factorizer.make_joint(members, &operand, &operand.w)?;
            return Ok(members.iter().copied().zip(made).collect());
        };
        let (mut original, mut fitted) = (Vec::new(), Vec::new());
        for member in members {
            let tensor = self.tensor(*member);
            let rows = tensor.row_count();
            let w = architecture::values(tensor, self.inputs.source, 0..rows)?;
            fitted.extend(moments.refit(&w, rows as usize)?);
            original.extend(w);
        }
        let cols = self.tensor(members[0]).row_len() as usize;
        let operand = Operand::with_gram(fitted, cols, gram);
        if is_joint {
            let made = self.factorizer.make_joint(members, &operand, &original)?;
            return Ok(members.iter().copied().zip(made).collect());
        }
        let made = self
            .factorizer
            .make_of(members[0], &[operand], Some(&original))?;
        Ok(vec![(members[0], made)])
    }

    fn finish(self) -> Fitted {
        let mut hash = Sha256::new();
        for (step, made) in self.steps.iter().enumerate() {
            for part in made.iter().flat_map(|(parts, _)| parts) {
                hash.update((step as u64).to_le_bytes());
                hash.update(part);
            }
        }
        Fitted {
            steps: self.steps,
            digest: hash.finalize().into(),
        }
    }
}
