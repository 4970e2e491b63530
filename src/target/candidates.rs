//! Predicts what each possible type of a tensor does to its output.

use dwindle_formats::gguf::TensorType;

use super::{BudgetError, Task};
use crate::architecture::ModelTensor;
use crate::ggml::{self, GgmlError};
use crate::method::rounding::{Curvature, DAMPING, RoundingError, errors, round};
use crate::plan::{Rounding, TensorError, TransformError};
use crate::writing::{Options, ordered};

/// The types that are considered where nothing else is asked for: ggml's k-, i- and legacy quants,
/// and F16.
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

/// The types in which a sensitivity is measured, the first that fits.
const PROBES: [TensorType; 3] = [TensorType::Q3_K, TensorType::Q4_0, TensorType::F16];

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
    /// Its position among the model's tensors.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// One for each type that fits its rows and holds its values.
    pub all: Vec<Candidate>,
    /// The type in which its sensitivity is measured, and its error there, rounded to the nearest.
    pub probe: Candidate,
}

/// What each of `types` would do to each weight of a model. Weights whose input was not measured
/// are judged by their own error. Threads and memory are those of `options`. `done` is called after
/// each tensor.
///
/// # Errors
/// Values that can't be read, damaged statistics, a tensor that none of the types fits.
pub fn candidates(
    task: &Task<'_>,
    types: &[TensorType],
    options: Options,
    done: &(dyn Fn() + Sync),
) -> Result<Vec<TensorCandidates>, BudgetError> {
    let tensors = &task.subject.model.tensors;
    let weights: Vec<usize> = (0..tensors.len())
        .filter(|i| tensors[*i].is_weight())
        .collect();
    let judge = |index: usize| Judge {
        tensor: &tensors[index],
        task,
    };
    let one = |index: &usize| {
        let judge = judge(*index);
        let found = judge.candidates(*index, types);
        judge.tensor.release(task.subject.source);
        done();
        found
    };
    let mut found = Vec::new();
    let cost = |index: &usize| judge(*index).memory();
    ordered(
        &weights,
        options.threads,
        options.memory,
        cost,
        one,
        |_, candidates| {
            found.push(candidates);
            Ok(())
        },
    )?;
    if found.is_empty() {
        Err(BudgetError::NothingToChoose)
    } else {
        Ok(found)
    }
}

struct Judge<'a> {
    tensor: &'a ModelTensor,
    task: &'a Task<'a>,
}

/// Rows of one slice, and what they read.
struct Sample<'a> {
    w: Vec<f32>,
    rows: usize,
    /// `None` where the input was not measured.
    curvature: Option<Curvature>,
    importance: Option<&'a [f32]>,
}

impl<'a> Judge<'a> {
    /// Bytes for judging: the samples' factored Grams, and one in progress.
    fn memory(&self) -> u64 {
        let square = self.tensor.shape[0].pow(2);
        let statistics = self.task.subject.measured.statistics;
        match statistics.and_then(|s| s.group(&self.tensor.name)) {
            // Inputs too wide for one Gram count as not measured.
            Some(group) if group.blocks.len() == 1 => (16 + 8 * self.slices().min(SLICES)) * square,
            _ => 0,
        }
    }

    fn slices(&self) -> u64 {
        self.tensor.row_count() / self.tensor.shape[1].max(1)
    }

    fn candidates(
        &self,
        index: usize,
        types: &[TensorType],
    ) -> Result<TensorCandidates, BudgetError> {
        let samples = self.samples()?;
        let fits = |ty: &TensorType| self.fits(*ty, &samples);
        // Why a type is left out, if one is because of its values.
        let mut refused = None;
        let mut candidate = |ty, rounding| -> Result<Option<Candidate>, BudgetError> {
            match self.candidate(ty, rounding, &samples) {
                Err(error) if is_unheld(&error) => {
                    refused = Some(error);
                    Ok(None)
                }
                found => found.map(Some),
            }
        };
        let mut all = Vec::new();
        for ty in types.iter().copied().filter(fits) {
            all.extend(candidate(ty, self.task.rounding)?);
        }
        let own = self.tensor.source_type(self.task.subject.source);
        let probes = PROBES.into_iter().filter(|ty| fits(ty) && *ty != own);
        let mut probe = None;
        for ty in probes.chain([TensorType::F16, TensorType::BF16]) {
            if probe.is_none() {
                probe = candidate(ty, Rounding::Nearest)?;
            }
        }
        match probe {
            Some(probe) if !all.is_empty() => Ok(TensorCandidates {
                index,
                name: self.tensor.name.clone(),
                all,
                probe,
            }),
            _ => Err(refused.unwrap_or_else(|| BudgetError::NoType {
                tensor: self.tensor.name.clone(),
                row: self.tensor.shape[0],
            })),
        }
    }

    /// Whether rows divide into blocks of a type, and it has the importance weights that it needs.
    fn fits(&self, ty: TensorType, samples: &[Sample<'_>]) -> bool {
        let known = samples.iter().all(|s| s.importance.is_some());
        self.tensor.shape[0].is_multiple_of(ty.block_len())
            && (known || !ggml::requires_importance(ty))
    }

    fn candidate(
        &self,
        ty: TensorType,
        rounding: Rounding,
        samples: &[Sample<'_>],
    ) -> Result<Candidate, BudgetError> {
        let bytes = ty.bytes(&self.tensor.shape).unwrap_or(u64::MAX);
        // What keeps its type is copied.
        let error = if ty == self.tensor.source_type(self.task.subject.source) {
            0.0
        } else {
            relative_error(samples, ty, rounding).map_err(TensorError::of(&self.tensor.name))?
        };
        Ok(Candidate {
            ty,
            bytes: bytes.next_multiple_of(dwindle_formats::gguf::DEFAULT_ALIGNMENT),
            error,
        })
    }

    /// Rows at even distances of slices at even distances.
    fn samples(&self) -> Result<Vec<Sample<'a>>, BudgetError> {
        let tensor = self.tensor;
        let (row, rows) = (tensor.shape[0] as usize, tensor.shape[1]);
        let slices = self.slices();
        evenly(slices, SLICES)
            .map(|slice| {
                let mut w = Vec::new();
                let first = slice * rows;
                let chosen: Vec<u64> = evenly(rows, SAMPLE.div_ceil(slices.min(SLICES))).collect();
                for r in &chosen {
                    let at = first + r..first + r + 1;
                    let read = self.task.subject.rows(tensor, at);
                    w.extend(read.map_err(TensorError::of(&tensor.name))?);
                }
                let slice = slice as usize;
                let measured = &self.task.subject.measured;
                let gram = measured
                    .gram(&tensor.name, slice)
                    .map_err(TensorError::of(&tensor.name))?;
                let curvature = gram.map(|gram| Curvature::new(gram, DAMPING)).transpose();
                let importance = measured.importance;
                Ok(Sample {
                    w,
                    rows: chosen.len(),
                    curvature: curvature.map_err(TensorError::of(&tensor.name))?,
                    importance: importance.and_then(|i| i.columns(&tensor.name, row, slice)),
                })
            })
            .collect()
    }
}

/// Whether a type can't hold a value that another may hold.
fn is_unheld(error: &BudgetError) -> bool {
    let BudgetError::Tensor(TensorError { source, .. }) = error else {
        return false;
    };
    let ggml = match source {
        TransformError::Ggml(ggml) | TransformError::Rounding(RoundingError::Ggml(ggml)) => ggml,
        _ => return false,
    };
    match ggml {
        GgmlError::Value { value, .. } => value.is_finite(),
        GgmlError::ScaleOverflow(_) => true,
        _ => false,
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
) -> Result<f64, TransformError> {
    let (mut lost, mut whole) = (0.0, 0.0);
    for sample in samples {
        let (l, w) = sample.energies(ty, rounding)?;
        lost += l;
        whole += w;
    }
    Ok(if whole > 0.0 {
        lost.max(0.0) / whole
    } else {
        0.0
    })
}

impl Sample<'_> {
    /// The energy of the output's error in a type, and of the output; of the weights themselves
    /// where the input was not measured.
    fn energies(&self, ty: TensorType, rounding: Rounding) -> Result<(f64, f64), TransformError> {
        let Sample {
            w,
            rows,
            curvature,
            importance,
        } = self;
        let n = w.len() / rows.max(&1);
        let nearest = || ggml::quantized(ty, w, n, *importance);
        let Some(curvature) = curvature else {
            let mut back = vec![0f32; w.len()];
            ggml::dequantize(ty, &nearest()?, &mut back)?;
            let errors = w.iter().zip(&back).map(|(a, b)| a - b);
            return Ok((energy(errors), energy(w.iter().copied())));
        };
        let bytes = if rounding == Rounding::Output && ty.is_quantized() {
            round(w, *rows, curvature, ty, *importance)?
        } else {
            nearest()?
        };
        let lost: f64 = errors(w, *rows, curvature, ty, &bytes)?.iter().sum();
        Ok((lost, curvature.output_energy(w, *rows)))
    }
}

fn energy(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v * v)).sum()
}
