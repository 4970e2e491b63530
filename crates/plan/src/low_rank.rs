//! Rules that give two factors: alone, with a shared one, or beside a pruned matrix.

use std::collections::{BTreeMap, HashMap};

use dwindle_formats::container::{Form, Part};
use dwindle_formats::gguf::TensorType;

use super::operand::Operand;
use super::resolve::PlanError;
use super::resolver::{Factored, Resolved, Resolver};
use super::rule::Rank;
use super::treatment::{Fallback, Step, Treatment};
use dwindle_architecture::ModelTensor;
use dwindle_method::low_rank::decompose;
use dwindle_method::prune::Pruning;
use dwindle_method::quantize::fitting_type;
use dwindle_method::sparsity::Pattern;

impl Resolver<'_> {
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
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut known: HashMap<&str, usize> = HashMap::new();
        for &index in members {
            let tensor = self.tensor(index);
            self.require_statistics(index, "svd of several tensors")?;
            let group = self
                .subject
                .measured
                .statistics
                .and_then(|s| s.group(&tensor.name));
            let key = group.map_or(tensor.name.as_str(), |g| g.name());
            let key = if tensor.shape.len() == 2 {
                key
            } else {
                &tensor.name
            };
            let group = *known.entry(key).or_insert(groups.len());
            match groups.get_mut(group) {
                Some(group) => group.push(index),
                None => groups.push(vec![index]),
            }
        }
        Ok(groups)
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
                [one] => Operand::slice(&self.subject, one, slice),
                _ => Operand::joint(&self.subject, &tensors),
            };
            let operand = operand.map_err(&failed)?;
            let rows = operand.w.len() / operand.cols;
            let d = decompose(&operand.w, rows, operand.cols, operand.gram())
                .map_err(|e| failed(e.into()))?;
            largest = largest.max(d.rank_of_energy(fraction));
        }
        Ok(largest)
    }

    pub fn sparse_low_rank(
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
