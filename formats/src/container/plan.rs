//! The plan as stored in a file: every tensor, its method, and its parts.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::form::{self, Form};
use crate::gguf::{TensorType, limits};

/// Longest row of a part, in bytes.
pub const ROW_BYTES_LIMIT: u64 = 1 << 26;

/// Tensors of a plan.
pub const TENSORS_LIMIT: usize = 1 << 20;

/// One entry of the file's tensor list, as it is after decoding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Name in the file.
    pub name: String,
    /// Element type after decoding.
    #[serde(rename = "type", with = "type_name")]
    pub ty: TensorType,
    /// Dimensions after decoding, row length first.
    pub shape: Vec<u64>,
}

impl Part {
    /// Bytes after decoding. Zero for a part that no check has passed.
    pub fn bytes(&self) -> u64 {
        self.ty.bytes(&self.shape).unwrap_or(0)
    }
}

/// A tensor of the model and what the file stores for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoredTensor {
    /// The model's name for it.
    pub name: String,
    /// Dimensions in the source, row length first.
    pub shape: Vec<u64>,
    /// Element type in the source.
    #[serde(rename = "type", with = "type_name")]
    pub ty: TensorType,
    /// How it was made (`quantize`, `svd`).
    pub method: String,
    /// The method's parameters, such as the rank.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, serde_json::Value>,
    /// How the parts make the tensor.
    pub form: Form,
    /// What the file stores, in file order.
    pub parts: Vec<Part>,
}

impl StoredTensor {
    /// The element types of its parts, one that follows itself once.
    pub fn types(&self) -> Vec<TensorType> {
        let mut types: Vec<TensorType> = self.parts.iter().map(|p| p.ty).collect();
        types.dedup();
        types
    }
}

/// The plan of a whole file.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct StoredPlan {
    /// Every tensor of the model in file order.
    pub tensors: Vec<StoredTensor>,
}

/// A plan that contradicts itself or the specification.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("tensor `{tensor}`: {problem}")]
pub struct PlanError {
    /// The tensor at fault.
    pub tensor: String,
    /// What is wrong, with what was found and what was expected.
    pub problem: String,
}

impl StoredPlan {
    /// All parts, in file order.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.tensors.iter().flat_map(|t| &t.parts)
    }

    /// Where each tensor stands, by its name.
    pub fn by_name(&self) -> HashMap<&str, usize> {
        let names = self.tensors.iter().enumerate();
        names.map(|(i, t)| (t.name.as_str(), i)).collect()
    }

    /// Whether any GGUF reader can use the file: every tensor dense.
    pub fn is_stock(&self) -> bool {
        self.tensors.iter().all(|t| t.form == Form::Dense)
    }

    /// Checks names, shapes, types and forms against the specification.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self) -> Result<(), PlanError> {
        if let Some(excess) = self.tensors.get(TENSORS_LIMIT) {
            return Err(PlanError {
                tensor: excess.name.clone(),
                problem: format!(
                    "it is one of {} tensors, the limit is {TENSORS_LIMIT}",
                    self.tensors.len()
                ),
            });
        }
        let mut names = HashSet::new();
        let mut tensors: HashMap<&str, &StoredTensor> = HashMap::new();
        for tensor in &self.tensors {
            let fail = |problem: String| PlanError {
                tensor: tensor.name.clone(),
                problem,
            };
            check_shape(&tensor.name, &tensor.shape, tensor.ty).map_err(fail)?;
            for part in &tensor.parts {
                check_shape(&part.name, &part.shape, part.ty).map_err(fail)?;
                let row = part.ty.bytes(&part.shape[..1]).unwrap_or(u64::MAX);
                if row > ROW_BYTES_LIMIT {
                    return Err(fail(format!(
                        "a row of part `{}` has {row} bytes, the limit is {ROW_BYTES_LIMIT}",
                        part.name
                    )));
                }
                if !names.insert(&part.name) {
                    return Err(fail(format!("part `{}` appears twice", part.name)));
                }
            }
            form::check(tensor).map_err(fail)?;
            let lender = tensor.form.lender().and_then(|name| tensors.get(name));
            form::check_lent(tensor, lender.copied()).map_err(fail)?;
            // A dense `w` and a factored `w` have no part in common.
            if tensors.insert(&tensor.name, tensor).is_some() {
                return Err(fail("it appears twice".into()));
            }
        }
        Ok(())
    }
}

fn check_shape(name: &str, shape: &[u64], ty: TensorType) -> Result<(), String> {
    if name.is_empty() || name.len() as u64 > limits::NAME_BYTES {
        return Err(format!(
            "the name `{name}` has {} bytes, expected 1 to {}",
            name.len(),
            limits::NAME_BYTES
        ));
    }
    let counted = shape
        .iter()
        .try_fold(1u64, |acc, n| acc.checked_mul(*n))
        .filter(|n| (1..=limits::ELEMENTS).contains(n));
    if shape.is_empty() || shape.len() > limits::DIMS as usize || counted.is_none() {
        return Err(format!(
            "`{name}` has shape {shape:?}, expected 1 to 4 dimensions, none zero"
        ));
    }
    match ty.bytes(shape) {
        Some(_) => Ok(()),
        None => Err(format!(
            "`{name}` has rows of {} elements, no multiple of {ty}'s block of {}",
            shape[0],
            ty.block_len()
        )),
    }
}

/// Element types by name in JSON.
mod type_name {
    use super::TensorType;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(ty: &TensorType, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(ty.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<TensorType, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(d)?;
        name.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn low_rank(rank_a: u64, rank_b: u64) -> StoredPlan {
        let part = |name: &str, shape: [u64; 2]| Part {
            name: name.into(),
            ty: TensorType::F16,
            shape: shape.into(),
        };
        StoredPlan {
            tensors: vec![StoredTensor {
                name: "w".into(),
                shape: vec![8, 4],
                ty: TensorType::BF16,
                method: "svd".into(),
                parameters: BTreeMap::new(),
                form: Form::LowRank,
                parts: vec![part("w.a", [8, rank_a]), part("w.b", [rank_b, 4])],
            }],
        }
    }

    #[test]
    fn low_rank_parts_must_share_a_rank() {
        assert_eq!(low_rank(2, 2).check(), Ok(()));
        assert!(low_rank(2, 3).check().is_err());
        assert!(low_rank(0, 0).check().is_err());
    }

    #[test]
    fn plans_round_trip_through_json() {
        let plan = low_rank(2, 2);
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<StoredPlan>(&json).unwrap(), plan);
        assert!(serde_json::from_str::<StoredPlan>(&json.replace("BF16", "BF17")).is_err());
    }
}
