//! Treats each layer as a plan says, for the inputs that the compressed layers before it give.

use std::sync::Arc;

use dwindle_formats::gguf::TensorType;
use rayon::prelude::*;

use super::checkpoint::running;
use super::unfitted::{ROWS_PER_ELEMENT, Reason, Unfitted};
use super::walk::{Treat, WIDEST};
use crate::architecture::{ModelTensor, role};
use crate::ggml;
use crate::llama::error::BoxError;
use crate::method::drift::{Correction, Drift, Following};
use crate::method::error::MethodError;
use crate::method::gram::Gram;
use crate::method::rounding::{Curvature, Curvatures, DAMPING, round_in_blocks};
use crate::plan::{Operand, Plan, Subject, TensorError, TransformError, Treatment};
use crate::writing::{
    ErrorSums, Factorizer, Fitted, FittedStep, Inputs, Made as Computed, Payload, store_rows,
};

/// Rows that one thread rounds at a time.
const ROWS: usize = 128;

/// The widest block of an input whose second moments a method other than rounding sees.
const WIDEST_FACTORED: usize = 4096;

/// Carries out a plan layer by layer.
pub struct Fitting<'a> {
    plan: &'a Plan,
    inputs: &'a Inputs<'a>,
    factorizer: Factorizer<'a>,
    following: Following,
    /// Steps that are treated before the walk: values of each, in F32.
    prepared: Vec<Option<Arc<Vec<f32>>>>,
    steps: Vec<Option<FittedStep>>,
    unfitted: Vec<Unfitted>,
}

/// What is known of one input: of each slice, or of all.
struct Known {
    curvatures: Vec<Curvatures>,
    corrections: Vec<Option<Correction>>,
}

impl<'a> Fitting<'a> {
    /// Nothing is treated yet.
    pub fn new(plan: &'a Plan, inputs: &'a Inputs<'a>, following: Following) -> Fitting<'a> {
        Fitting {
            plan,
            inputs,
            factorizer: Factorizer::new(plan, inputs),
            following,
            prepared: vec![None; plan.steps.len()],
            steps: plan.steps.iter().map(|_| None).collect(),
            unfitted: Vec::new(),
        }
    }

    /// Treats what no walk shows an input of: stacks over layers.
    ///
    /// # Errors
    /// As the method's.
    pub fn prepare(&mut self) -> Result<(), TensorError> {
        for step in 0..self.plan.steps.len() {
            let treatment = &self.plan.steps[step].treatment;
            let Some(members) = treatment.stack().filter(|m| m.len() > 1) else {
                continue;
            };
            let failed = TensorError::of::<TransformError>(&self.tensor(step).name);
            let made = self.factorizer.make(step).map_err(failed)?;
            let len = made.values.len() / members.len();
            for (member, values) in members.iter().zip(made.values.chunks(len)) {
                self.prepared[*member] = Some(Arc::new(values.to_vec()));
            }
            self.steps[step] = Some(kept(made));
            let names = members.iter().map(|i| self.tensor(*i).name.clone());
            self.unfitted.push(Unfitted {
                weights: names.collect(),
                width: self.tensor(step).row_len() as usize,
                reason: Reason::Stacked,
            });
        }
        Ok(())
    }

    /// The steps of tensors that were treated.
    pub fn made(&self, tensors: &[usize]) -> Vec<(usize, &FittedStep)> {
        let made = tensors
            .iter()
            .filter_map(|i| Some((*i, self.steps[*i].as_ref()?)));
        made.collect()
    }

    /// Takes over what an earlier run has made, or what this one has put into files.
    pub fn take(&mut self, made: Vec<(usize, FittedStep)>) {
        for (step, made) in made {
            if let Some(place) = self.steps.get_mut(step) {
                *place = Some(made);
            }
        }
    }

    /// The parts of the steps that were treated, and what they lost; and what was not fitted.
    pub fn finish(self) -> (Fitted, Vec<Unfitted>) {
        (Fitted::new(self.steps), self.unfitted)
    }

    /// Whether so few tokens were seen that a method does better with what calibration knows.
    fn is_too_little(&self, tensors: &[usize], drifts: &[Drift]) -> bool {
        let width = self.tensor(tensors[0]).row_len() as usize;
        drifts.len() == 1 && drifts[0].tokens() < ROWS_PER_ELEMENT * width
    }

    /// Notes layers whose input was seen too little of.
    fn note(&mut self, tensors: &[usize], drifts: &[Drift]) {
        let statistics = self.subject().measured.statistics;
        let is_known = |name: &String| {
            statistics.is_some_and(|s| s.group(name).is_some_and(|g| g.blocks.len() == 1))
        };
        let names = tensors.iter().map(|i| self.tensor(*i).name.clone());
        let weights: Vec<String> = names.collect();
        let width = self.tensor(tensors[0]).row_len() as usize;
        self.unfitted.push(Unfitted {
            width,
            reason: Reason::TooFewTokens {
                tokens: drifts[0].tokens(),
                needed: ROWS_PER_ELEMENT * width,
                measured: weights.iter().all(is_known),
            },
            weights,
        });
    }

    /// A step, with all that share its factors, from what calibration saw.
    fn by_calibration(&self, step: usize) -> Result<Vec<Computed>, TransformError> {
        let Some(members) = self.plan.steps[step].treatment.joint() else {
            return Ok(vec![self.factorizer.make(step)?]);
        };
        let tensors: Vec<&ModelTensor> = members.iter().map(|i| self.tensor(*i)).collect();
        let operand = Operand::joint(self.subject(), &tensors)?;
        self.factorizer.make_joint(members, &operand, &operand.w)
    }

    fn tensor(&self, step: usize) -> &'a ModelTensor {
        &self.inputs.subject.model.tensors[step]
    }

    fn subject(&self) -> &Subject<'a> {
        &self.inputs.subject
    }

    /// The type in which a treated tensor is run.
    fn running(&self, step: usize) -> TensorType {
        let tensor = self.tensor(step);
        running(tensor, tensor.source_type(self.subject().source))
    }

    /// Whether a tensor is rounded to a coarser type.
    fn is_quantized(&self, step: usize) -> bool {
        let tensor = self.tensor(step);
        let ty = self.plan.steps[step].stored.parts[0].ty;
        !tensor.always_f32 && ty.is_quantized() && ty != tensor.source_type(self.subject().source)
    }

    fn known(&self, drifts: &[Drift]) -> Result<Known, MethodError> {
        let curvatures = |drift: &Drift| -> Result<Curvatures, MethodError> {
            let grams: Vec<_> = drift.grams().collect();
            let each = grams.into_par_iter().map(|(columns, values)| {
                let gram = Gram::new(&values, columns.len())?;
                Ok((columns, Curvature::new(gram, DAMPING)?))
            });
            each.collect()
        };
        let correction = |drift: &Drift| -> Result<Option<Correction>, MethodError> {
            match drift.tokens() {
                0 => Ok(None),
                _ => drift.correction(self.following),
            }
        };
        let (curvatures, corrections): (Result<Vec<_>, _>, Result<Vec<_>, _>) = rayon::join(
            || drifts.par_iter().map(curvatures).collect(),
            || drifts.par_iter().map(correction).collect(),
        );
        Ok(Known {
            curvatures: curvatures?,
            corrections: corrections?,
        })
    }

    /// A tensor's values, fitted to the drift of its input.
    fn fitted(&self, step: usize, known: &Known) -> Result<Vec<f32>, TransformError> {
        let tensor = self.tensor(step);
        let w = self.subject().values(tensor)?;
        let row = tensor.row_len() as usize;
        let rows = tensor.rows_per_slice() as usize;
        let chunks: Vec<Vec<f32>> = w
            .par_chunks(ROWS * row)
            .enumerate()
            .map(|(i, w)| self.follow(w, i * ROWS, (row, rows), known))
            .collect::<Result<_, MethodError>>()?;
        Ok(chunks.concat())
    }

    /// Rows from `first` on, fitted.
    fn follow(
        &self,
        w: &[f32],
        first: usize,
        (row, per_slice): (usize, usize),
        known: &Known,
    ) -> Result<Vec<f32>, MethodError> {
        match of_slice(&known.corrections, first / per_slice) {
            None => Ok(w.to_vec()),
            Some(correction) => correction.apply(w, w.len() / row),
        }
    }

    /// A dense tensor, rounded for its inputs, and what is computed with.
    fn rounded(&self, step: usize, known: &Known) -> Result<(Computed, Vec<u8>), TransformError> {
        let tensor = self.tensor(step);
        let ty = self.plan.steps[step].stored.parts[0].ty;
        let row = tensor.row_len() as usize;
        let per_slice = tensor.rows_per_slice() as usize;
        let importance = self.subject().measured.importance;
        let run = self.running(step);
        let jobs: Vec<(usize, usize)> = (0..tensor.slices())
            .flat_map(|slice| (0..per_slice).step_by(ROWS).map(move |r| (slice, r)))
            .collect();
        let made: Vec<(Vec<u8>, Vec<u8>, ErrorSums)> = jobs
            .par_iter()
            .with_max_len(1)
            .map(|(slice, first)| {
                let start = slice * per_slice + first;
                let end = start + ROWS.min(per_slice - first);
                let w = self.subject().rows(tensor, start as u64..end as u64)?;
                let fitted = self.follow(&w, start, (row, per_slice), known)?;
                let weights = importance.and_then(|i| i.columns(&tensor.name, row, *slice));
                let curvatures = of_slice(&known.curvatures, *slice);
                let bytes = round_in_blocks(&fitted, end - start, curvatures, ty, weights)?;
                let mut back = vec![0f32; w.len()];
                ggml::dequantize(ty, &bytes, &mut back)?;
                let sums = ErrorSums::of(&w, &back);
                Ok((bytes, ggml::quantized(run, &back, row, None)?, sums))
            })
            .collect::<Result<_, TransformError>>()?;
        let mut sums = ErrorSums::default();
        let (mut bytes, mut running) = (Vec::new(), Vec::new());
        for (own, run, piece) in made {
            sums.add(piece);
            bytes.extend(own);
            running.extend(run);
        }
        let made = Computed {
            parts: vec![bytes],
            values: Vec::new(),
            sums,
        };
        Ok((made, running))
    }

    /// Tensors that are treated together by a method.
    fn treated(
        &self,
        members: &[usize],
        known: &Known,
        drifts: &[Drift],
    ) -> Result<Vec<Computed>, TransformError> {
        let (mut original, mut fitted) = (Vec::new(), Vec::new());
        for member in members {
            original.extend(self.subject().values(self.tensor(*member))?);
            fitted.extend(self.fitted(*member, known)?);
        }
        let first = self.tensor(members[0]);
        let cols = first.row_len() as usize;
        let grams: Vec<Vec<f32>> = drifts.iter().map(|d| whole(d, cols)).collect();
        let per_slice = first.rows_per_slice() as usize * cols;
        if self.plan.steps[members[0]].treatment.joint().is_some() {
            let operand = Operand::with_gram(fitted, cols, &grams[0]);
            return self.factorizer.make_joint(members, &operand, &original);
        }
        let operands: Vec<Operand<'_>> = fitted
            .chunks(per_slice)
            .enumerate()
            .map(|(slice, w)| {
                Operand::with_gram(w.to_vec(), cols, of_slice::<Vec<f32>>(&grams, slice))
            })
            .collect();
        let made = self
            .factorizer
            .make_of(members[0], &operands, Some(&original))?;
        Ok(vec![made])
    }

    /// The bytes that the compressed block computes with.
    fn bytes_of(&self, step: usize, made: &Computed) -> Result<Vec<u8>, TransformError> {
        let row = self.tensor(step).row_len() as usize;
        Ok(ggml::quantized(
            self.running(step),
            &made.values,
            row,
            None,
        )?)
    }
}

fn kept(made: Computed) -> FittedStep {
    let parts = made.parts.into_iter().map(Payload::Memory);
    (parts.collect(), made.sums)
}

/// What is known of a slice, where there is an entry for each, or one for all.
fn of_slice<T>(all: &[T], slice: usize) -> &T {
    &all[if all.len() == 1 { 0 } else { slice }]
}

/// The whole of a Gram, with zeros between its blocks.
fn whole(drift: &Drift, n: usize) -> Vec<f32> {
    let mut all = vec![0f32; n * n];
    for (columns, values) in drift.grams() {
        for (i, row) in values.chunks(columns.len()).enumerate() {
            let start = (columns.start + i) * n + columns.start;
            all[start..start + columns.len()].copy_from_slice(row);
        }
    }
    all
}

impl Treat for Fitting<'_> {
    fn ty(&self, tensor: usize) -> TensorType {
        let step = &self.plan.steps[tensor];
        match self.awaits(tensor) {
            // Products with some quantized types are slow, so that what they hold is computed with.
            true => self.running(tensor),
            false if self.prepared[tensor].is_some() => TensorType::F32,
            false => step.stored.parts[0].ty,
        }
    }

    fn awaits(&self, tensor: usize) -> bool {
        if role(&self.tensor(tensor).name).0.is_none() || self.prepared[tensor].is_some() {
            return false;
        }
        match &self.plan.steps[tensor].treatment {
            Treatment::Slice => false,
            Treatment::Store => self.is_quantized(tensor),
            Treatment::Round => true,
            made => made.stack().is_none_or(|members| members.len() == 1),
        }
    }

    fn bytes(&self, tensor: usize, ty: TensorType) -> Result<Vec<u8>, BoxError> {
        let own = self.tensor(tensor);
        if let Some(values) = &self.prepared[tensor] {
            let row = own.row_len() as usize;
            return Ok(ggml::quantized(ty, values, row, None)?);
        }
        let (source, importance) = (self.subject().source, self.subject().measured.importance);
        let (bytes, _) = store_rows(own, source, ty, 0..own.row_count(), importance)
            .map_err(TensorError::of::<TransformError>(&own.name))?;
        Ok(bytes.into_owned())
    }

    fn widest(&self, tensors: &[usize]) -> usize {
        let is_rounded = |t: &usize| matches!(self.plan.steps[*t].treatment, Treatment::Round);
        match tensors.iter().all(is_rounded) {
            true => WIDEST,
            false => WIDEST_FACTORED,
        }
    }

    fn layer(&mut self, tensors: &[usize], drifts: &[Drift]) -> Result<Vec<Vec<u8>>, BoxError> {
        let by_method = |t: &usize| !matches!(self.plan.steps[*t].treatment, Treatment::Round);
        let methods: Vec<usize> = tensors.iter().copied().filter(by_method).collect();
        let is_too_little = self.is_too_little(tensors, drifts);
        if is_too_little && !methods.is_empty() {
            self.note(&methods, drifts);
        }
        let known = self.known(drifts)?;
        let mut all: Vec<Option<Vec<u8>>> = vec![None; tensors.len()];
        for (at, tensor) in tensors.iter().enumerate() {
            if all[at].is_some() {
                continue;
            }
            let model = self.inputs.subject.model;
            let failed = |step: usize| TensorError::of::<TransformError>(&model.tensors[step].name);
            let treatment = &self.plan.steps[*tensor].treatment;
            let members = treatment
                .joint()
                .map_or_else(|| vec![*tensor], <[usize]>::to_vec);
            let made = match treatment {
                Treatment::Round => self.rounded(*tensor, &known).map(|made| vec![made]),
                _ => match is_too_little {
                    true => self.by_calibration(*tensor),
                    false => self.treated(&members, &known, drifts),
                }
                .and_then(|all| {
                    let run = |(member, made): (&usize, Computed)| {
                        let bytes = self.bytes_of(*member, &made)?;
                        Ok((made, bytes))
                    };
                    members.iter().zip(all).map(run).collect()
                }),
            };
            let made = made.map_err(failed(*tensor))?;
            for (member, (made, bytes)) in members.into_iter().zip(made) {
                if let Some(at) = tensors.iter().position(|t| *t == member) {
                    all[at] = Some(bytes);
                }
                self.tensor(member).release(self.subject().source);
                self.steps[member] = Some(kept(made));
            }
        }
        Ok(all.into_iter().flatten().collect())
    }
}
