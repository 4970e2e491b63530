//! Chooses one type for each tensor within a budget of bytes.

use std::collections::BTreeMap;

use dwindle_formats::gguf::TensorType;

use super::{BudgetError, Candidate, TensorCandidates};
use crate::method::allocate::{Choice, choose};
use crate::method::error::MethodError;
use crate::plan::{Base, Recipe, Rounding, Rule};

/// A divergence below this is held for this: a tensor that measures as nothing is not free.
const LEAST_DIVERGENCE: f64 = 1e-7;

/// The range of bits in which choices are made at random, and how far around them types are taken.
const LEAST_BITS: f64 = 2.5;
const MOST_BITS: f64 = 7.0;
const AROUND: f64 = 1.5;

/// What every type of every tensor costs in bytes, and in divergence by prediction.
#[derive(Debug, Clone)]
pub struct Costs {
    tensors: Vec<TensorCandidates>,
    /// Divergence for each unit of a tensor's relative output error.
    slopes: Vec<f64>,
    /// By how much more a tensor's divergence counts where types are chosen.
    factors: Vec<f64>,
    /// Divergence where all weights are quantized, and what layers read is rounded to 8 bits.
    activations: f64,
}

/// A type for each tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// By tensor name.
    pub types: BTreeMap<String, TensorType>,
    /// Bytes of these tensors in a file.
    pub bytes: u64,
    /// The mean KL divergence that is predicted.
    pub kld: f64,
}

impl Costs {
    /// Of tensors with the divergence that each causes in its probe's type, and the divergence that rounding
    /// their inputs to 8 bits causes.
    pub fn new(
        tensors: impl IntoIterator<Item = (TensorCandidates, f64)>,
        activations: f64,
    ) -> Costs {
        let slope = |(tensor, kld): (TensorCandidates, f64)| {
            let error = tensor.probe.error;
            let slope = if error > 0.0 {
                kld.max(LEAST_DIVERGENCE) / error
            } else {
                0.0
            };
            (tensor, slope)
        };
        let (tensors, slopes): (Vec<_>, Vec<_>) = tensors.into_iter().map(slope).unzip();
        Costs {
            factors: vec![1.0; tensors.len()],
            activations,
            tensors,
            slopes,
        }
    }

    /// The same, with what some tensors' errors count multiplied where types are chosen.
    /// Predictions don't change.
    pub fn with_factor(&self, tensors: &[usize], factor: f64) -> Costs {
        let mut out = self.clone();
        for i in tensors {
            out.factors[*i] *= factor;
        }
        out
    }

    /// Names of the tensors, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// The smallest divergence within this many bytes.
    ///
    /// # Errors
    /// [`BudgetError::TooSmall`].
    pub fn allocate(&self, bytes: u64) -> Result<Assignment, BudgetError> {
        let weights = self.slopes.iter().zip(&self.factors).map(|(s, f)| s * f);
        let items: Vec<Vec<Choice>> = self.tensors.iter().zip(weights).map(choices).collect();
        let found = match choose(&items, bytes) {
            Err(MethodError::Budget { needed, .. }) => {
                return Err(BudgetError::TooSmall {
                    wanted: bytes,
                    smallest: needed,
                });
            }
            found => found?,
        };
        Ok(self.assignment(&found.shares))
    }

    /// A choice at random, to check predictions against measurements: bits for the whole, and for
    /// each tensor any type that is near them. `random` gives numbers from 0 up to 1.
    pub fn at_random(&self, random: &mut dyn FnMut() -> f64) -> Assignment {
        let bits = LEAST_BITS + (MOST_BITS - LEAST_BITS) * random();
        let shares: Vec<usize> = self
            .tensors
            .iter()
            .map(|tensor| {
                let away = |c: &Candidate| (bits_of(c.ty) - bits).abs();
                let nearest = tensor.all.iter().map(away).fold(f64::INFINITY, f64::min);
                let near = |i: &usize| away(&tensor.all[*i]) <= nearest.max(AROUND);
                let near: Vec<usize> = (0..tensor.all.len()).filter(near).collect();
                near[((random() * near.len() as f64) as usize).min(near.len() - 1)]
            })
            .collect();
        self.assignment(&shares)
    }

    /// What a choice of one candidate for each tensor comes to.
    fn assignment(&self, shares: &[usize]) -> Assignment {
        let mut out = Assignment {
            types: BTreeMap::new(),
            bytes: 0,
            kld: 0.0,
        };
        let (mut quantized, mut all) = (0.0, 0.0);
        for ((tensor, slope), share) in self.tensors.iter().zip(&self.slopes).zip(shares) {
            let Candidate { ty, bytes, error } = tensor.all[*share];
            let elements = bytes as f64 / bits_of(ty);
            all += elements;
            if ty.is_quantized() {
                quantized += elements;
            }
            out.types.insert(tensor.name.clone(), ty);
            out.bytes += bytes;
            out.kld += slope * error;
        }
        if quantized > 0.0 {
            out.kld += self.activations * quantized / all;
        }
        out
    }

    /// The bytes of the smallest and of the largest choice.
    pub fn range(&self) -> (u64, u64) {
        let bytes = |t: &TensorCandidates| t.all.iter().map(|c| c.bytes).collect::<Vec<u64>>();
        let sum = |pick: fn(Vec<u64>) -> Option<u64>| {
            self.tensors.iter().filter_map(|t| pick(bytes(t))).sum()
        };
        (
            sum(|all| all.into_iter().min()),
            sum(|all| all.into_iter().max()),
        )
    }
}

/// Bits that an element takes in a type.
pub fn bits_of(ty: TensorType) -> f64 {
    let block = ty.block_len();
    8.0 * ty.row_bytes(block) as f64 / block as f64
}

fn choices((tensor, weight): (&TensorCandidates, f64)) -> Vec<Choice> {
    let choice = |c: &Candidate| Choice {
        cost: c.bytes,
        error: weight * c.error,
    };
    tensor.all.iter().map(choice).collect()
}

impl Assignment {
    /// The recipe that a user could have written: a rule for each tensor.
    pub fn recipe(&self, rounding: Rounding) -> Recipe {
        Recipe {
            rules: self
                .types
                .iter()
                .map(|(name, ty)| Rule::of_tensor(name, *ty))
                .collect(),
            rounding,
            ..Recipe::of(Base::F16)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_inputs_lose_counts_for_quantized_weights() {
        let candidate = |ty: TensorType, error: f64| Candidate {
            ty,
            bytes: ty.bytes(&[256, 64]).unwrap(),
            error,
        };
        let tensor = |index: usize| TensorCandidates {
            index,
            name: index.to_string(),
            all: vec![
                candidate(TensorType::Q4_0, 0.01),
                candidate(TensorType::F16, 0.0),
            ],
            probe: candidate(TensorType::Q4_0, 0.01),
        };
        let costs = Costs::new([(tensor(0), 0.02), (tensor(1), 0.04)], 0.006);
        let kld = |shares: [usize; 2]| costs.assignment(&shares).kld;
        assert!((kld([0, 0]) - 0.066).abs() < 1e-9);
        assert!((kld([0, 1]) - 0.023).abs() < 1e-9);
        assert_eq!(kld([1, 1]), 0.0);
    }
}
