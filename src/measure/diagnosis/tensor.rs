//! Diagnosis of a tensor from statistics alone.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::architecture::{Model, ModelTensor, role};
use crate::eval::EvalError;
use crate::llama::model::LlamaError;
use crate::measure::experiment::ExperimentError;
use crate::method::low_rank::{Decomposition, LowRankError, decompose};
use crate::method::prune::Pruning;
use crate::method::sparsity::Pattern;
use crate::method::svd::multiply_out;
use crate::method::tensor::Ranks;
use crate::method::tensor_train::{decompose_matrix, mode_sizes};
use crate::plan::{Operand, Subject, TensorError, TransformError};
use crate::statistics::{Statistics, TensorDiagnosis};

/// The kept fractions at which the spectrum is looked at.
const KEEPS: [f64; 3] = [0.25, 0.5, 0.75];

/// Why a model can't be diagnosed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum DiagnoseError {
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Llama(#[from] LlamaError),
}

impl From<ExperimentError> for DiagnoseError {
    fn from(e: ExperimentError) -> DiagnoseError {
        match e {
            ExperimentError::Tensor(e) => e.into(),
            ExperimentError::Eval(e) => e.into(),
            ExperimentError::Llama(e) => e.into(),
        }
    }
}

/// Every linear layer's weight whose input was measured whole, in file order, without divergences.
/// Left out are an embedding that is the output layer too, as nothing here says what its rows cost,
/// and what no method may touch (routers). `done` is
/// called after each.
///
/// # Errors
/// Weights that can't be read or decomposed, damaged statistics.
pub fn tensors(
    subject: &Subject<'_>,
    statistics: &Statistics,
    keep: f64,
    done: &(dyn Fn() + Sync),
) -> Result<Vec<TensorDiagnosis>, DiagnoseError> {
    let known: Vec<&ModelTensor> = measured_weights(subject.model, statistics).collect();
    known
        .par_iter()
        .map(|tensor| {
            let found = diagnose(subject, tensor, keep).map_err(TensorError::of(&tensor.name))?;
            statistics.release(&tensor.name);
            tensor.release(subject.source);
            done();
            Ok(found)
        })
        .collect()
}

pub(super) fn measured_weights<'a>(
    model: &'a Model,
    statistics: &'a Statistics,
) -> impl Iterator<Item = &'a ModelTensor> {
    model.tensors.iter().filter(|t| {
        let is_embedding = role(&t.name).1 == "token_embd";
        matches!(t.shape.len(), 2 | 3)
            && !is_embedding
            && !t.always_f32
            && statistics
                .group(&t.name)
                .is_some_and(|g| g.blocks.len() == 1)
    })
}

/// The rank of factors that keep a fraction of the parameters of m x n; at least one.
pub(super) fn rank_of_keep(keep: f64, m: usize, n: usize) -> usize {
    ((keep * (m * n) as f64 / (m + n) as f64) as usize).clamp(1, m.min(n))
}

/// Sums over the slices of a tensor, each weighted by its share of the tokens.
#[derive(Default)]
struct Sums {
    energy: f64,
    effective_rank: f64,
    weight: f64,
    held: [f64; 3],
    errors: BTreeMap<String, f64>,
}

impl Sums {
    /// Adds the error of what a method puts in the place of a slice.
    fn add(&mut self, operand: &Operand<'_>, tokens: f64, method: &str, replacement: &[f32]) {
        let rows = operand.w.len() / operand.cols.max(1);
        let error = operand
            .gram()
            .map_or(0.0, |g| g.output_error(&operand.w, replacement, rows));
        *self.errors.entry(method.to_string()).or_default() += tokens * error;
    }

    fn of(self, tensor: &ModelTensor) -> TensorDiagnosis {
        let share = |sum: f64, of: f64| if of > 0.0 { sum / of } else { 0.0 };
        TensorDiagnosis {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            output_energy: share(self.energy, self.weight),
            effective_rank: share(self.effective_rank, self.weight),
            energy: self.held.map(|held| share(held, self.energy)),
            output_errors: self
                .errors
                .into_iter()
                .map(|(method, error)| (method, share(error, self.energy).max(0.0)))
                .collect(),
            kld: None,
        }
    }
}

fn diagnose(
    subject: &Subject<'_>,
    tensor: &ModelTensor,
    keep: f64,
) -> Result<TensorDiagnosis, TransformError> {
    let (n, m) = (tensor.shape[0] as usize, tensor.shape[1] as usize);
    let slices = tensor.slices();
    let mut sums = Sums::default();
    for slice in 0..slices {
        let tokens = subject.measured.tokens(&tensor.name, slice) as f64;
        let operand = Operand::slice(subject, tensor, slice)?;
        let Decomposition::Whitened(whitening, spectrum) =
            decompose(&operand.w, m, n, operand.gram())?
        else {
            continue;
        };
        if tokens == 0.0 {
            continue;
        }
        let energy = spectrum.energy();
        sums.weight += tokens;
        sums.energy += tokens * energy;
        sums.effective_rank += tokens * effective_rank(spectrum.spectrum());
        for (held, keep) in sums.held.iter_mut().zip(KEEPS) {
            *held += tokens * (energy - spectrum.error(rank_of_keep(keep, m, n)));
        }
        let factors = whitening
            .factors(&spectrum, &operand.w, rank_of_keep(keep, m, n))
            .map_err(LowRankError::from)?;
        let product = multiply_out(&factors.a, &factors.b, n, m, factors.b.len() / m);
        sums.add(&operand, tokens, "svd", &product);
        let zeros = Pattern::Unstructured(1.0 - keep);
        for pruning in [Pruning::Magnitude, Pruning::Wanda, Pruning::SparseGpt] {
            let pruned = pruning.prune(&operand.w, m, n, operand.gram(), zeros)?;
            sums.add(&operand, tokens, pruning.name(), &pruned);
        }
        if slices == 1 {
            let (rows, cols) = (mode_sizes(m, 2), mode_sizes(n, 2));
            let train = decompose_matrix(&operand.w, &rows, &cols, Ranks::Keep(keep))?;
            sums.add(&operand, tokens, "tensor-train", &train.multiply_out());
        }
    }
    Ok(sums.of(tensor))
}

/// e to the entropy of the shares of the energy; 0 where there is none.
fn effective_rank(spectrum: &[f64]) -> f64 {
    let total: f64 = spectrum.iter().sum();
    if total <= 0.0 {
        return 0.0;
    }
    let shares = spectrum.iter().map(|v| v / total).filter(|p| *p > 0.0);
    (-shares.map(|p| p * p.ln()).sum::<f64>()).exp()
}

#[cfg(test)]
mod tests {
    use super::{effective_rank, rank_of_keep};

    #[test]
    fn the_effective_rank_counts_equal_directions() {
        assert!((effective_rank(&[2.0; 8]) - 8.0).abs() < 1e-12);
        assert!((effective_rank(&[3.0, 0.0, 0.0]) - 1.0).abs() < 1e-12);
        assert_eq!(effective_rank(&[0.0, 0.0]), 0.0);
    }

    #[test]
    fn ranks_keep_to_the_matrix() {
        assert_eq!(rank_of_keep(0.5, 8, 8), 2);
        assert_eq!(rank_of_keep(0.001, 8, 8), 1);
        assert_eq!(rank_of_keep(9.0, 8, 4), 4);
    }
}
