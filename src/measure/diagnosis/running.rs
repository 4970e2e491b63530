//! Diagnosis by running the model: with one tensor compressed at a time, and with all.

use std::ops::ControlFlow;

use super::tensor::{DiagnoseError, rank_of_keep};
use crate::architecture::ModelTensor;
use crate::eval::{Chunks, EvalOptions};
use crate::llama::activations::Probe;
use crate::llama::context::{ContextOptions, default_threads};
use crate::llama::lockstep::{Pair, lockstep};
use crate::llama::model::Model;
use crate::measure::experiment::Experiment;
use crate::method::low_rank::decompose;
use crate::method::svd::multiply_out;
use crate::plan::{Operand, Subject, TensorError, TransformError};
use crate::statistics::{InputDiagnosis, TensorDiagnosis};

/// A tensor after whitened svd at `keep`.
fn compressed(
    subject: &Subject<'_>,
    tensor: &ModelTensor,
    keep: f64,
) -> Result<Vec<f32>, TransformError> {
    let (n, m) = (tensor.shape[0] as usize, tensor.shape[1] as usize);
    let rank = rank_of_keep(keep, m, n);
    let slices = tensor.slices();
    let slice = |i: usize| -> Result<Vec<f32>, TransformError> {
        let operand = Operand::slice(subject, tensor, i)?;
        let d = decompose(&operand.w, m, n, operand.gram())?;
        let f = d.factors(&operand.w, m, n, rank)?;
        Ok(multiply_out(&f.a, &f.b, n, m, rank))
    };
    let made: Result<Vec<Vec<f32>>, _> = (0..slices).map(slice).collect();
    Ok(made?.concat())
}

/// Lets go of what was read of a tensor and of its input's Gram.
fn release(subject: &Subject<'_>, tensor: &ModelTensor) {
    tensor.release(subject.source);
    if let Some(statistics) = subject.measured.statistics {
        statistics.release(&tensor.name);
    }
}

/// Measures the divergence of each tensor compressed alone, and sorts them by it. The experiment's
/// weights are as before afterwards. Gives the chunks of the text that were evaluated.
///
/// # Errors
/// A text that is too short, and whatever ends an evaluation.
pub fn divergences<'a>(
    subject: &Subject<'a>,
    experiment: &mut Experiment<'a>,
    keep: f64,
    tensors: &mut [TensorDiagnosis],
    done: &mut dyn FnMut(),
) -> Result<usize, DiagnoseError> {
    let by_name = subject.model.by_name();
    for diagnosis in tensors.iter_mut() {
        if let Some(&tensor) = by_name.get(diagnosis.name.as_str()) {
            let change = |tensor: &ModelTensor| compressed(subject, tensor, keep);
            diagnosis.kld = Some(experiment.divergence(&[tensor], &change)?.value);
            release(subject, tensor);
        }
        done();
    }
    let kld = |t: &TensorDiagnosis| t.kld.unwrap_or(0.0);
    tensors.sort_by(|a, b| kld(b).total_cmp(&kld(a)));
    Ok(experiment.chunks()?)
}

/// Sums over the rows of an input.
#[derive(Default, Clone)]
struct Rows {
    cosines: f64,
    count: u64,
    first: f64,
    second: f64,
}

impl Rows {
    fn add(&mut self, first: &[f32], second: &[f32], width: usize) {
        for (x, y) in first.chunks_exact(width).zip(second.chunks_exact(width)) {
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
            };
            let (xx, yy) = (dot(x, x), dot(y, y));
            if xx > 0.0 && yy > 0.0 {
                self.cosines += dot(x, y) / (xx * yy).sqrt();
                self.count += 1;
            }
            self.first += xx;
            self.second += yy;
        }
    }
}

/// Compresses every tensor of a diagnosis in `running` and compares what the layers read with what
/// they read in `original`.
///
/// # Errors
/// As [`divergences`].
pub fn activations(
    subject: &Subject<'_>,
    [original, running]: [&Model; 2],
    keep: f64,
    (text, options): (&str, &EvalOptions),
    tensors: &[TensorDiagnosis],
) -> Result<Vec<InputDiagnosis>, DiagnoseError> {
    let by_name = subject.model.by_name();
    for diagnosis in tensors {
        if let Some(&tensor) = by_name.get(diagnosis.name.as_str()) {
            let changed =
                compressed(subject, tensor, keep).map_err(TensorError::of(&tensor.name))?;
            running.replace(&tensor.name, &changed)?;
            release(subject, tensor);
        }
    }
    let chunks = Chunks::cut(original, text, options)?;
    let context = ContextOptions {
        ctx: options.ctx,
        batch: options.ctx,
        ubatch: options.ctx,
        threads: Some(options.threads.unwrap_or_else(default_threads)),
        ..ContextOptions::default()
    };
    let mut first = Probe::new(original, &context)?;
    let mut second = Probe::new(running, &context)?;
    let inputs = first.inputs().to_vec();
    let mut sums = vec![Rows::default(); inputs.len()];
    for chunk in 0..chunks.count {
        first.clear();
        second.clear();
        lockstep(
            &mut first,
            &mut second,
            &chunks.batch(original, chunk..chunk + 1, 0..chunks.ctx),
            &vec![true; inputs.len()],
            &mut |Pair { first, second }| {
                let i = second.input;
                // Rows that are routed to experts need not be of the same experts in both models.
                if second.values.len() == chunks.ctx * inputs[i].width {
                    sums[i].add(first, second.values, inputs[i].width);
                }
                ControlFlow::Continue(())
            },
        )?;
    }
    let compared = inputs
        .into_iter()
        .zip(sums)
        .filter(|(_, rows)| rows.count > 0);
    let found = compared.map(|(input, rows)| {
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        InputDiagnosis {
            weights: input.readers.into_iter().map(|r| r.weight).collect(),
            cosine: ratio(rows.cosines, rows.count as f64),
            norm_ratio: ratio(rows.second, rows.first).sqrt(),
        }
    });
    Ok(found.collect())
}
