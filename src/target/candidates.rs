//! Predicts what each possible type of a tensor does to its output.

use std::ops::Range;

use dwindle_formats::gguf::TensorType;
use rayon::prelude::*;

use super::{BudgetError, bits_of};
use crate::architecture::ModelTensor;
use crate::ggml::{self, GgmlError};
use crate::method::rounding::{Curvature, Curvatures, RoundingError, round_in_blocks};
use crate::plan::{Rounding, Subject, TensorError, TransformError};

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

/// The bits a weight from which on a file has no use for the smallest types.
const ENOUGH: f64 = 3.5;

/// The type whose weights lose next to nothing, and whose products round what layers read to 8 bits, as those
/// of all quantized types do.
pub const COARSE: TensorType = TensorType::Q8_0;

/// The types to judge for a file: those that are wanted, or else those that a file of so many bits a weight may
/// have use for. Those below 2.6 bits take long to judge.
pub fn types_for(wanted: &[TensorType], bits: Option<f64>) -> Vec<TensorType> {
    if !wanted.is_empty() {
        // What that costs is a part of every prediction.
        let coarse = (!wanted.contains(&COARSE)).then_some(COARSE);
        return wanted.iter().copied().chain(coarse).collect();
    }
    let is_large = bits.is_some_and(|b| b >= ENOUGH);
    let is_small = |ty: &TensorType| bits_of(*ty) < 2.6;
    let all = TYPES.iter().copied();
    all.filter(|ty| !(is_large && is_small(ty))).collect()
}

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

/// What is known of the input of a tensor.
pub struct Known<'a> {
    /// The curvature of each slice's input, or one for all.
    pub curvatures: &'a [Curvatures],
    /// Importance weights of each slice's columns, one slice after another, or one set for all.
    pub importance: &'a [f32],
}

/// What each of `types` would do to a weight, by its position among the model's tensors. Without a known
/// input it is judged by its own error.
///
/// # Errors
/// Values that can't be read, a tensor that none of the types fits.
pub fn judge(
    subject: &Subject<'_>,
    index: usize,
    (types, rounding): (&[TensorType], Rounding),
    known: Option<&Known<'_>>,
) -> Result<TensorCandidates, BudgetError> {
    let judge = Judge {
        tensor: &subject.model.tensors[index],
        subject,
        rounding,
        known,
    };
    let found = judge.candidates(index, types);
    judge.tensor.release(subject.source);
    found
}

struct Judge<'a> {
    tensor: &'a ModelTensor,
    subject: &'a Subject<'a>,
    rounding: Rounding,
    known: Option<&'a Known<'a>>,
}

/// Rows of one slice, and what they read.
struct Sample<'a> {
    w: Vec<f32>,
    rows: usize,
    /// `None` where the input was not measured.
    curvatures: Option<&'a Curvatures>,
    importance: Option<&'a [f32]>,
}

impl<'a> Judge<'a> {
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
        let candidate = |ty, rounding| -> Result<Option<Candidate>, BudgetError> {
            match self.candidate(ty, rounding, &samples) {
                Err(error) if is_unheld(&error) => Ok(None),
                found => found.map(Some),
            }
        };
        let fitting: Vec<TensorType> = types.iter().copied().filter(fits).collect();
        let found: Vec<Option<Candidate>> = fitting
            .par_iter()
            .with_max_len(1)
            .map(|ty| candidate(*ty, self.rounding))
            .collect::<Result<_, _>>()?;
        let all: Vec<Candidate> = found.into_iter().flatten().collect();
        let own = self.tensor.source_type(self.subject.source);
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
            // Why a type is left out, if one is because of its values.
            _ => Err(fitting
                .iter()
                .find_map(|ty| self.candidate(*ty, self.rounding, &samples).err())
                .unwrap_or_else(|| BudgetError::NoType {
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
        let error = if ty == self.tensor.source_type(self.subject.source) {
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
                    let read = self.subject.rows(tensor, at);
                    w.extend(read.map_err(TensorError::of(&tensor.name))?);
                }
                let slice = slice as usize;
                let of_slice = |known: &'a Known<'a>| -> Option<&'a Curvatures> {
                    known.curvatures.get(slice).or(known.curvatures.first())
                };
                let weights = |known: &'a Known<'a>| -> Option<&'a [f32]> {
                    let sets = known.importance.len() / row;
                    let set = if sets == 1 { 0 } else { slice };
                    known.importance.get(set * row..(set + 1) * row)
                };
                Ok(Sample {
                    w,
                    rows: chosen.len(),
                    curvatures: self.known.and_then(of_slice),
                    importance: self.known.and_then(weights),
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
            curvatures,
            importance,
        } = self;
        let n = w.len() / rows.max(&1);
        let nearest = || ggml::quantized(ty, w, n, *importance);
        let back = |bytes: &[u8]| -> Result<Vec<f32>, TransformError> {
            let mut back = vec![0f32; w.len()];
            ggml::dequantize(ty, bytes, &mut back)?;
            Ok(back.iter().zip(w).map(|(b, w)| w - b).collect())
        };
        let Some(curvatures) = curvatures else {
            let errors = back(&nearest()?)?;
            return Ok((energy(errors.into_iter()), energy(w.iter().copied())));
        };
        let bytes = if rounding == Rounding::Output && ty.is_quantized() {
            round_in_blocks(w, *rows, curvatures, ty, *importance)?
        } else {
            nearest()?
        };
        let of_output = |values: &[f32]| -> f64 {
            let of_block = |(columns, curvature): &(Range<usize>, Curvature)| {
                let row = |row: &[f32]| row[columns.clone()].to_vec();
                let block: Vec<f32> = values.chunks_exact(n).flat_map(row).collect();
                curvature.output_energy(&block, *rows)
            };
            curvatures.iter().map(of_block).sum()
        };
        Ok((of_output(&back(&bytes)?), of_output(w)))
    }
}

fn energy(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v * v)).sum()
}
