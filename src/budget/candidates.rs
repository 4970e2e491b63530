//! The types that a tensor could have, and what each does to its output.

use dwindle_formats::gguf::TensorType;
use rayon::prelude::*;

use super::BudgetError;
use crate::architecture::{Model, ModelTensor, values};
use crate::checkpoint::Source;
use crate::llama::ggml;
use crate::method::gram::Gram;
use crate::method::rounding::{Curvature, DAMPING, errors, round};
use crate::plan::Rounding;
use crate::statistics::Measured;

/// The types that are considered where nothing else is asked for: llama.cpp computes with all of
/// them on every backend.
pub const TYPES: &[TensorType] = &[
    TensorType::IQ1_S,
    TensorType::IQ1_M,
    TensorType::IQ2_XXS,
    TensorType::IQ2_XS,
    TensorType::IQ2_S,
    TensorType::Q2_K,
    TensorType::IQ3_XXS,
    TensorType::IQ3_S,
    TensorType::Q3_K,
    TensorType::IQ4_XS,
    TensorType::IQ4_NL,
    TensorType::Q4_0,
    TensorType::Q4_K,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_K,
    TensorType::Q5_1,
    TensorType::Q6_K,
    TensorType::Q8_0,
    TensorType::F16,
];

/// Rows of a tensor by which its types are judged.
const SAMPLE: u64 = 48;

/// Slices of a stack by which its types are judged.
const SLICES: u64 = 4;

/// One type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The type.
    pub ty: TensorType,
    /// What the tensor takes in a file, padding included.
    pub bytes: u64,
    /// The energy of the output's error over that of the output.
    pub error: f64,
}

/// The types of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorCandidates {
    /// Its position in [`Model::tensors`].
    pub index: usize,
    /// Its name.
    pub name: String,
    /// One for each type that fits its rows.
    pub all: Vec<Candidate>,
    /// The type in which its sensitivity is measured, and its error there, rounded to the nearest.
    pub probe: Candidate,
}

/// What each of `types` would do to each weight of a model. Weights whose input was not measured are
/// judged by their own error. `done` is called after each tensor.
///
/// # Errors
/// Values that can't be read, damaged statistics.
pub fn candidates(
    model: &Model,
    source: &dyn Source,
    measured: &Measured<'_>,
    types: &[TensorType],
    rounding: Rounding,
    done: &(dyn Fn() + Sync),
) -> Result<Vec<TensorCandidates>, BudgetError> {
    let weights: Vec<usize> = (0..model.tensors.len())
        .filter(|i| !model.tensors[*i].always_f32 && model.tensors[*i].shape.len() > 1)
        .collect();
    let one = |index: &usize| {
        let judge = Judge {
            tensor: &model.tensors[*index],
            source,
            measured,
            rounding,
        };
        let found = judge.candidates(*index, types);
        judge.tensor.release(source);
        done();
        found
    };
    let found: Vec<TensorCandidates> = weights.par_iter().map(one).collect::<Result<_, _>>()?;
    match found.is_empty() {
        true => Err(BudgetError::NothingToChoose),
        false => Ok(found),
    }
}

struct Judge<'a> {
    tensor: &'a ModelTensor,
    source: &'a dyn Source,
    measured: &'a Measured<'a>,
    rounding: Rounding,
}

/// Rows of one slice, and what they read.
struct Sample<'a> {
    w: Vec<f32>,
    rows: usize,
    curvature: Curvature,
    importance: Option<&'a [f32]>,
    /// Whether the input was measured.
    is_measured: bool,
}

impl<'a> Judge<'a> {
    fn candidates(
        &self,
        index: usize,
        types: &[TensorType],
    ) -> Result<TensorCandidates, BudgetError> {
        let name = &self.tensor.name;
        let samples = self.samples()?;
        let row = self.tensor.shape[0];
        let fits = |ty: &TensorType| {
            let known = samples.iter().all(|s| s.importance.is_some());
            row.is_multiple_of(ty.block_len()) && (known || !ggml::requires_importance(*ty))
        };
        let candidate = |ty: TensorType, rounding: Rounding| -> Result<Candidate, BudgetError> {
            let bytes = ty.bytes(&self.tensor.shape).unwrap_or(u64::MAX);
            Ok(Candidate {
                ty,
                bytes: bytes.next_multiple_of(dwindle_formats::gguf::DEFAULT_ALIGNMENT),
                error: relative_error(&samples, ty, rounding).map_err(BudgetError::of(name))?,
            })
        };
        let all = types.iter().copied().filter(fits);
        let all = all
            .map(|ty| candidate(ty, self.rounding))
            .collect::<Result<Vec<_>, _>>()?;
        let probe = [TensorType::Q3_K, TensorType::Q4_0, TensorType::F16];
        let probe = probe
            .into_iter()
            .find(|ty| fits(ty))
            .unwrap_or(TensorType::F16);
        Ok(TensorCandidates {
            index,
            name: name.clone(),
            all,
            probe: candidate(probe, Rounding::Nearest)?,
        })
    }

    /// Rows at even distances of slices at even distances.
    fn samples(&self) -> Result<Vec<Sample<'a>>, BudgetError> {
        let tensor = self.tensor;
        let (row, rows) = (tensor.shape[0] as usize, tensor.shape[1]);
        let slices = tensor.row_count() / rows.max(1);
        evenly(slices, SLICES)
            .map(|slice| {
                let mut w = Vec::new();
                let first = slice * rows;
                let chosen: Vec<u64> = evenly(rows, SAMPLE.div_ceil(slices.min(SLICES))).collect();
                for r in &chosen {
                    let at = first + r..first + r + 1;
                    w.extend(values(tensor, self.source, at).map_err(super::ggml(&tensor.name))?);
                }
                let slice = slice as usize;
                let gram = self
                    .measured
                    .gram(&tensor.name, slice)
                    .map_err(BudgetError::of(&tensor.name))?;
                let curvature = match gram {
                    Some(gram) => Curvature::new(gram, DAMPING),
                    None => Curvature::new(
                        Gram {
                            values: &vec![0.0; row * row],
                            n: row,
                        },
                        DAMPING,
                    ),
                };
                let importance = self.measured.importance;
                Ok(Sample {
                    w,
                    rows: chosen.len(),
                    curvature: curvature.map_err(BudgetError::of(&tensor.name))?,
                    importance: importance.and_then(|i| i.columns(&tensor.name, row, slice)),
                    is_measured: gram.is_some(),
                })
            })
            .collect()
    }
}

/// At most `most` numbers below `count`, in the middle of equal parts.
fn evenly(count: u64, most: u64) -> impl Iterator<Item = u64> {
    let parts = count.min(most).max(1);
    (0..parts).map(move |i| (2 * i + 1) * count / (2 * parts))
}

/// The energy of the output's error in a type over that of the output, over all samples.
fn relative_error(
    samples: &[Sample<'_>],
    ty: TensorType,
    rounding: Rounding,
) -> Result<f64, crate::plan::TransformError> {
    let (mut lost, mut whole) = (0.0, 0.0);
    for s in samples {
        let n = s.curvature.n();
        let bytes = if rounding == Rounding::Output && ty.is_quantized() && s.is_measured {
            round(&s.w, s.rows, &s.curvature, ty, s.importance)?
        } else {
            let len = ty.bytes(&[n as u64, s.rows as u64]).unwrap_or(0);
            let mut bytes = vec![0; len as usize];
            ggml::quantize(ty, &s.w, n, s.importance, &mut bytes)?;
            bytes
        };
        lost += errors(&s.w, s.rows, &s.curvature, ty, &bytes)?
            .iter()
            .sum::<f64>();
        whole += s.curvature.output_energy(&s.w, s.rows);
    }
    Ok(if whole > 0.0 {
        lost.max(0.0) / whole
    } else {
        0.0
    })
}
