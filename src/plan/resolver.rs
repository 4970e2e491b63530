//! One tensor's rule, or one rule's tensors, resolved into steps.

use std::collections::BTreeMap;

use dwindle_formats::container::{Form, Part, StoredTensor};
use dwindle_formats::gguf::TensorType;
use rayon::prelude::*;

use super::operand::{Operand, TransformError};
use super::resolve::PlanError;
use super::rule::{Method, Rank};
use super::treatment::{Fallback, Step, Treatment};
use crate::architecture::{Model, ModelTensor};
use crate::checkpoint::Source;
use crate::method::low_rank::decompose;
use crate::method::prune::Pruning;
use crate::method::quantize::fitting_type;
use crate::method::sparsity::Pattern;
use crate::statistics::Measured;

/// A step, and what was wished where that could not be.
pub(super) type Resolved = (Step, Option<Fallback>);

/// What rules are resolved against.
pub(super) struct Resolver<'a> {
    pub model: &'a Model,
    pub source: &'a dyn Source,
    pub measured: &'a Measured<'a>,
    /// The type of each tensor that no rule names.
    pub base: &'a [TensorType],
}

/// What the parts of a factored tensor are, and how they are made.
pub(super) struct Factored {
    pub method: &'static str,
    pub parameters: BTreeMap<String, serde_json::Value>,
    pub form: Form,
    /// Suffix, type and shape.
    pub parts: Vec<(String, TensorType, Vec<u64>)>,
    pub treatment: Treatment,
}

impl Resolver<'_> {
    pub fn single(&self, index: usize, method: Option<&Method>) -> Result<Resolved, PlanError> {
        match method {
            None => Ok(self.dense(index, self.base[index], None)),
            Some(Method::Quantize(ty)) => {
                Ok(self.quantize(index, ty.unwrap_or(self.source_type(index))))
            }
            Some(Method::Svd { rank, ty, .. }) => self.low_rank(index, *rank, *ty),
            Some(Method::SparseLowRank {
                pruning,
                pattern,
                rank,
                ty,
            }) => self.sparse_low_rank(index, *pruning, *pattern, *rank, *ty),
            Some(Method::Multilinear {
                decomposition,
                over,
                ranks,
                ty,
                ..
            }) => self.multilinear(index, decomposition, *over, ranks, *ty),
            Some(Method::Prune {
                pruning,
                pattern,
                ty,
            }) => self.prune(
                index,
                *pruning,
                *pattern,
                ty.unwrap_or(self.source_type(index)),
            ),
        }
    }

    /// The steps of tensors that a method treats together; the others are left to
    /// [`Self::single`].
    pub fn together(
        &self,
        method: &Method,
        members: &[usize],
    ) -> Result<Vec<(usize, Resolved)>, PlanError> {
        match method {
            Method::Svd {
                rank: Rank::Auto(keep),
                joint,
                ty,
            } => self.auto(members, *keep, *joint, *ty),
            Method::Svd {
                rank,
                joint: true,
                ty,
            } => {
                let groups = self.readers_of_one_input(members)?;
                let resolved: Vec<_> = groups
                    .par_iter()
                    .filter(|group| group.len() > 1)
                    .map(|group| self.joint(group, *rank, None, *ty))
                    .collect::<Result<_, _>>()?;
                Ok(resolved.into_iter().flatten().collect())
            }
            Method::Multilinear {
                decomposition,
                over: Some(dwindle_formats::container::Over::Layers),
                stack,
                ranks,
                ty,
            } => self.layer_stacks(members, decomposition, *stack, ranks, *ty),
            _ => Ok(Vec::new()),
        }
    }

    pub fn tensor(&self, index: usize) -> &ModelTensor {
        &self.model.tensors[index]
    }

    fn source_type(&self, index: usize) -> TensorType {
        self.tensor(index).source_type(self.source)
    }

    pub fn transform_failed(&self, index: usize) -> impl Fn(TransformError) -> PlanError {
        let tensor = self.tensor(index).name.clone();
        move |source| PlanError::Spectrum {
            tensor: tensor.clone(),
            source,
        }
    }

    /// Whether the input of a tensor was measured whole.
    pub fn is_measured(&self, index: usize) -> bool {
        let name = &self.tensor(index).name;
        self.measured
            .statistics
            .is_some_and(|s| s.group(name).is_some_and(|g| g.blocks.len() == 1))
    }

    pub fn require_statistics(&self, index: usize, method: &'static str) -> Result<(), PlanError> {
        if self.is_measured(index) {
            return Ok(());
        }
        Err(PlanError::StatisticsMissing {
            tensor: self.tensor(index).name.clone(),
            method,
        })
    }

    fn quantize(&self, index: usize, wanted: TensorType) -> Resolved {
        let row = self.tensor(index).shape[0];
        let fitting = fitting_type(wanted, row);
        let reason = format!(
            "rows of {row} elements are no multiple of {wanted}'s block of {}",
            wanted.block_len()
        );
        self.dense(
            index,
            fitting,
            (fitting != wanted).then(|| (wanted.to_string(), reason)),
        )
    }

    fn prune(
        &self,
        index: usize,
        pruning: Pruning,
        pattern: Pattern,
        ty: TensorType,
    ) -> Result<Resolved, PlanError> {
        let tensor = self.tensor(index);
        if pruning.needs_gram() {
            self.require_statistics(index, pruning.name())?;
        }
        let (mut step, fallback) = self.quantize(index, ty);
        let zeros = pattern.zeros((tensor.row_count() * tensor.row_len()) as usize);
        step.stored.method = pruning.name().into();
        step.stored
            .parameters
            .insert("zeros".into(), (zeros as u64).into());
        step.treatment = Treatment::Prune { pruning, pattern };
        Ok((step, fallback))
    }

    pub fn dense(&self, index: usize, ty: TensorType, unmet: Option<(String, String)>) -> Resolved {
        let tensor = self.tensor(index);
        let source_ty = self.source_type(index);
        let step = Step {
            stored: StoredTensor {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                ty: source_ty,
                method: dense_method(source_ty, ty).into(),
                parameters: BTreeMap::new(),
                form: Form::Dense,
                parts: vec![Part {
                    name: tensor.name.clone(),
                    ty,
                    shape: tensor.shape.clone(),
                }],
            },
            treatment: Treatment::Store,
        };
        let fallback = unmet.map(|(wanted, reason)| Fallback {
            tensor: tensor.name.clone(),
            wanted,
            done: ty.to_string(),
            reason,
        });
        (step, fallback)
    }

    /// A tensor as its rule's exception: in the base type, and why.
    pub fn unmet(&self, index: usize, wish: &str, reason: String) -> Resolved {
        self.dense(index, self.base[index], Some((wish.to_string(), reason)))
    }

    pub fn factored(&self, index: usize, what: Factored) -> Step {
        let tensor = self.tensor(index);
        let parts = what.parts.into_iter().map(|(suffix, ty, shape)| Part {
            name: format!("{}.{suffix}", tensor.name),
            ty,
            shape,
        });
        Step {
            stored: StoredTensor {
                name: tensor.name.clone(),
                shape: tensor.shape.clone(),
                ty: self.source_type(index),
                method: what.method.into(),
                parameters: what.parameters,
                form: what.form,
                parts: parts.collect(),
            },
            treatment: what.treatment,
        }
    }

    /// What tensors take in their base types.
    pub fn dense_bytes(&self, members: &[usize]) -> u64 {
        members
            .iter()
            .map(|i| {
                self.base[*i]
                    .bytes(&self.tensor(*i).shape)
                    .unwrap_or(u64::MAX)
            })
            .fold(0, u64::saturating_add)
    }

    /// Factors of one matrix, or of each matrix of a stack.
    pub fn low_rank(
        &self,
        index: usize,
        rank: Rank,
        wanted_ty: TensorType,
    ) -> Result<Resolved, PlanError> {
        let wish = format!("svd with {wanted_ty} factors");
        let shape = &self.tensor(index).shape;
        let (n, m) = match shape[..] {
            [n, m] | [n, m, _] => (n, m),
            _ => {
                let reason = format!("it has {} dimensions", shape.len());
                return Ok(self.unmet(index, &wish, reason));
            }
        };
        let ty = fitting_type(wanted_ty, n);
        let block = ty.block_len();
        let rank = match rank {
            Rank::Energy(f) => self.rank_of_energy(&[index], f)?.next_multiple_of(block),
            rank => counted(rank, n, m, block),
        };
        let with_stack = |mut matrix: Vec<u64>| {
            matrix.extend(&shape[2..]);
            matrix
        };
        let step = self.factored(
            index,
            Factored {
                method: "svd",
                parameters: self.low_rank_parameters(index, rank),
                form: Form::LowRank,
                parts: vec![
                    ("a".into(), ty, with_stack(vec![n, rank])),
                    ("b".into(), ty, with_stack(vec![rank, m])),
                ],
                treatment: Treatment::LowRank {
                    rank: rank as usize,
                },
            },
        );
        if let Some(reason) = self.too_large(&[&step], &[index], rank, n.min(m)) {
            return Ok(self.unmet(index, &wish, reason));
        }
        let fallback = self.other_type(index, &wish, "svd", n, wanted_ty, ty);
        Ok((step, fallback))
    }

    fn low_rank_parameters(&self, index: usize, rank: u64) -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([
            ("rank".to_string(), rank.into()),
            ("whitened".to_string(), self.is_measured(index).into()),
        ])
    }

    /// Why factors are not worth it, if they are not.
    fn too_large(
        &self,
        steps: &[&Step],
        members: &[usize],
        rank: u64,
        limit: u64,
    ) -> Option<String> {
        let parts = steps.iter().flat_map(|s| &s.stored.parts);
        let bytes: u64 = parts.map(Part::bytes).sum();
        let dense = self.dense_bytes(members);
        (rank > limit || bytes >= dense).then(|| {
            format!(
                "rank {rank} would take {bytes} bytes, and {} takes {dense}",
                match members {
                    [one] => format!("the dense tensor as {}", self.base[*one]),
                    many => format!("{} dense tensors", many.len()),
                }
            )
        })
    }

    pub fn other_type(
        &self,
        index: usize,
        wish: &str,
        method: &str,
        row: u64,
        wanted: TensorType,
        ty: TensorType,
    ) -> Option<Fallback> {
        (ty != wanted).then(|| Fallback {
            tensor: self.tensor(index).name.clone(),
            wanted: wish.to_string(),
            done: format!("{method} with {ty} factors"),
            reason: format!("rows of {row} elements don't fit {wanted}"),
        })
    }

    /// Tensors in groups that read the same input, in file order.
    pub fn readers_of_one_input(&self, members: &[usize]) -> Result<Vec<Vec<usize>>, PlanError> {
        let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
        for &index in members {
            let tensor = self.tensor(index);
            self.require_statistics(index, "svd of several tensors")?;
            let group = self.measured.statistics.and_then(|s| s.group(&tensor.name));
            let key = group.map_or(tensor.name.as_str(), |g| g.name());
            let key = if tensor.shape.len() == 2 {
                key
            } else {
                &tensor.name
            };
            match groups.iter_mut().find(|(k, _)| *k == key) {
                Some((_, group)) => group.push(index),
                None => groups.push((key, vec![index])),
            }
        }
        Ok(groups.into_iter().map(|(_, group)| group).collect())
    }

    /// Factors of tensors that read the same input, with one factor for the input.
    pub fn joint(
        &self,
        members: &[usize],
        rank: Rank,
        weights: Option<&[f64]>,
        wanted_ty: TensorType,
    ) -> Result<Vec<(usize, Resolved)>, PlanError> {
        let wish = format!("joint svd with {wanted_ty} factors");
        let n = self.tensor(members[0]).shape[0];
        let m: u64 = members.iter().map(|i| self.tensor(*i).shape[1]).sum();
        let ty = fitting_type(wanted_ty, n);
        let block = ty.block_len();
        let rank = match rank {
            Rank::Energy(f) => self.rank_of_energy(members, f)?.next_multiple_of(block),
            rank => counted(rank, n, m, block),
        };
        let first = &self.tensor(members[0]).name;
        let steps: Vec<Step> = members
            .iter()
            .map(|&index| {
                let b = ("b".to_string(), ty, vec![rank, self.tensor(index).shape[1]]);
                let (form, parts) = if index == members[0] {
                    (Form::LowRank, vec![("a".into(), ty, vec![n, rank]), b])
                } else {
                    let input = first.clone();
                    (Form::SharedLowRank { input }, vec![b])
                };
                self.factored(
                    index,
                    Factored {
                        method: "svd",
                        parameters: self.low_rank_parameters(index, rank),
                        form,
                        parts,
                        treatment: Treatment::Joint {
                            members: members.to_vec(),
                            rank: rank as usize,
                            weights: weights.map(<[f64]>::to_vec),
                        },
                    },
                )
            })
            .collect();
        let all: Vec<&Step> = steps.iter().collect();
        let too_large = self.too_large(&all, members, rank, n.min(m));
        Ok(members
            .iter()
            .zip(steps)
            .map(|(&index, step)| match &too_large {
                Some(reason) => (index, self.unmet(index, &wish, reason.clone())),
                None => {
                    let fallback = self.other_type(index, &wish, "svd", n, wanted_ty, ty);
                    (index, (step, fallback))
                }
            })
            .collect())
    }

    fn rank_of_energy(&self, members: &[usize], fraction: f64) -> Result<u64, PlanError> {
        let failed = self.transform_failed(members[0]);
        let tensors: Vec<&ModelTensor> = members.iter().map(|i| self.tensor(*i)).collect();
        let slices = tensors[0].shape.get(2).copied().unwrap_or(1) as usize;
        let mut largest = 1;
        for slice in 0..slices {
            let operand = match tensors[..] {
                [one] => Operand::slice(one, slice, self.source, self.measured),
                _ => Operand::joint(&tensors, self.source, self.measured),
            };
            let operand = operand.map_err(&failed)?;
            let rows = operand.w.len() / operand.cols;
            let d = decompose(&operand.w, rows, operand.cols, operand.gram())
                .map_err(|e| failed(e.into()))?;
            largest = largest.max(d.rank_of_energy(fraction));
        }
        Ok(largest)
    }

    fn sparse_low_rank(
        &self,
        index: usize,
        pruning: Pruning,
        pattern: Pattern,
        rank: Rank,
        wanted_ty: TensorType,
    ) -> Result<Resolved, PlanError> {
        let wish = format!("sparse-low-rank with {wanted_ty} factors");
        let [n, m] = self.tensor(index).shape[..] else {
            let reason = "it is no matrix".to_string();
            return Ok(self.unmet(index, &wish, reason));
        };
        self.require_statistics(index, "sparse-low-rank")?;
        let zeros = pattern.zeros((n * m) as usize) as u64;
        let ty = fitting_type(wanted_ty, n);
        let rank = match rank {
            // What the sparse part keeps is no longer the factors' to keep.
            Rank::Keep(keep) => {
                let left = keep - 1.0 + zeros as f64 / (n * m) as f64;
                if left <= 0.0 {
                    let reason = format!(
                        "its sparse part alone keeps {:.3}, and `keep` is {keep}",
                        1.0 - zeros as f64 / (n * m) as f64
                    );
                    return Ok(self.unmet(index, &wish, reason));
                }
                counted(Rank::Keep(left), n, m, ty.block_len())
            }
            rank => counted(rank, n, m, ty.block_len()),
        };
        if rank > n.min(m) {
            let reason = format!("rank {rank} is above the smaller side of {n} x {m}");
            return Ok(self.unmet(index, &wish, reason));
        }
        let mut parameters = self.low_rank_parameters(index, rank);
        parameters.insert("zeros".into(), zeros.into());
        parameters.insert("pruning".into(), pruning.name().into());
        let step = self.factored(
            index,
            Factored {
                method: "sparse-low-rank",
                parameters,
                form: Form::SparseLowRank,
                parts: vec![
                    ("s".into(), self.source_type(index), vec![n, m]),
                    ("a".into(), ty, vec![n, rank]),
                    ("b".into(), ty, vec![rank, m]),
                ],
                treatment: Treatment::SparseLowRank {
                    pruning,
                    pattern,
                    rank: rank as usize,
                },
            },
        );
        let fallback = self.other_type(index, &wish, "sparse-low-rank", n, wanted_ty, ty);
        Ok((step, fallback))
    }
}

/// The rank of a wish that needs no spectrum, in whole blocks.
fn counted(rank: Rank, n: u64, m: u64, block: u64) -> u64 {
    match rank {
        Rank::Keep(f) => {
            let r = (f * (n * m) as f64 / (n + m) as f64) as u64;
            (r / block * block).max(block)
        }
        Rank::Fixed(r) => r.next_multiple_of(block),
        Rank::OfRow(part) => ((part * n as f64).round() as u64)
            .max(1)
            .next_multiple_of(block),
        Rank::Energy(_) | Rank::Auto(_) => block,
    }
}

fn dense_method(from: TensorType, to: TensorType) -> &'static str {
    match to {
        _ if from == to => "copy",
        ty if ty.is_quantized() => "quantize",
        _ => "convert",
    }
}
