//! `svd`: two factors by truncated singular value decomposition, of a matrix or of each of a stack.

mod auto;
mod joint;

use std::collections::BTreeMap;
use std::sync::Arc;

use dwindle_architecture::ModelTensor;
use dwindle_formats::container::{Form, Part};
use dwindle_formats::gguf::TensorType;
use dwindle_method::fitting_type::fitting_type;
use dwindle_method::low_rank::decompose;
use serde::Deserialize;

use super::keys::{Rank, RankWish};
use super::{Make, Method, keys, registered};
use crate::operand::{Operand, TransformError};
use crate::resolve::PlanError;
use crate::resolver::{Factored, Resolved, Resolver, Wish};
use crate::treatment::{Fallback, Operands, Step, Treatment};

const NAME: &str = "svd";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    #[serde(rename = "type")]
    ty: Option<String>,
    rank: Option<RankWish>,
    keep: Option<f64>,
    energy: Option<f64>,
    joint: Option<bool>,
}

impl registered::Keys for Keys {
    fn check(self, _name: &'static str) -> Result<Arc<dyn Method>, String> {
        let ty = keys::factor_type(self.ty.as_deref())?;
        let joint = self.joint.unwrap_or(false);
        let is_auto = |rank: &RankWish| matches!(rank, RankWish::Word(word) if word == "auto");
        if self.rank.as_ref().is_some_and(is_auto) {
            return match (self.keep, self.energy) {
                (Some(keep), None) => Ok(Arc::new(auto::Auto {
                    keep: keys::fraction("keep", keep)?,
                    joint,
                    ty,
                })),
                _ => Err("`rank = \"auto\"` shares a budget: it needs `keep`".into()),
            };
        }
        let rank = keys::one_rank(self.rank.as_ref(), self.keep, self.energy)?;
        let svd = Svd { rank, ty };
        Ok(if joint {
            Arc::new(joint::JointSvd(svd))
        } else {
            Arc::new(svd)
        })
    }
}

/// Two factors of each tensor by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Svd {
    /// How many singular values stay.
    pub rank: Rank,
    /// The factors' element type.
    pub ty: TensorType,
}

impl Method for Svd {
    fn resolve(&self, resolver: &Resolver<'_>, index: usize) -> Result<Resolved, PlanError> {
        let wish = Wish::factors(NAME, self.ty);
        let shape = &resolver.tensor(index).shape;
        let (n, m) = match shape[..] {
            [n, m] | [n, m, _] => (n, m),
            _ => {
                let reason = format!("it has {} dimensions", shape.len());
                return Ok(resolver.unmet(index, &wish.text, reason));
            }
        };
        let ty = fitting_type(self.ty, n);
        let (rank, exact) = self.rank_of(resolver, &[index], n, m)?;
        let with_stack = |mut matrix: Vec<u64>| {
            matrix.extend(&shape[2..]);
            matrix
        };
        let step = resolver.factored(
            index,
            Factored {
                method: NAME,
                parameters: parameters(resolver, index, rank),
                form: Form::LowRank,
                parts: vec![
                    ("a".into(), ty, with_stack(vec![n, rank])),
                    ("b".into(), ty, with_stack(vec![rank, m])),
                ],
                treatment: Treatment::made(
                    Operands::Matrices,
                    Factors {
                        rank: rank as usize,
                    },
                ),
            },
        );
        if let Some(reason) = too_large(resolver, &[&step], &[index], rank, n.min(m)) {
            return Ok(resolver.unmet(index, &wish.text, reason));
        }
        let note = resolver.other_type(index, &wish, n, ty);
        Ok((
            step,
            note.or_else(|| raised(resolver, index, (rank, exact), ty)),
        ))
    }
}

impl Svd {
    /// The rank for tensors with rows of n elements and m rows in all, in whole blocks, and what was asked
    /// for.
    fn rank_of(
        &self,
        resolver: &Resolver<'_>,
        members: &[usize],
        n: u64,
        m: u64,
    ) -> Result<(u64, u64), PlanError> {
        let block = fitting_type(self.ty, n).block_len();
        match self.rank {
            Rank::Energy(f) => {
                let exact = rank_of_energy(resolver, members, f)?;
                Ok((exact.next_multiple_of(block), exact))
            }
            rank => Ok((counted(rank, n, m, block), counted(rank, n, m, 1))),
        }
    }
}

/// Says that a rank below the first block of a type was raised to it.
fn raised(
    resolver: &Resolver<'_>,
    index: usize,
    (rank, exact): (u64, u64),
    ty: TensorType,
) -> Option<Fallback> {
    (exact < ty.block_len() && rank != exact).then(|| Fallback {
        tensor: resolver.tensor(index).name.clone(),
        wanted: format!("rank {exact}"),
        done: format!("rank {rank}"),
        reason: format!(
            "{ty} stores blocks of {} elements; F16 factors have any rank",
            ty.block_len()
        ),
    })
}

/// A and B of each matrix.
#[derive(Debug)]
struct Factors {
    /// Singular values kept; a matrix with a side below it has fewer.
    rank: usize,
}

impl Make for Factors {
    fn parts(&self, operands: &[Operand<'_>]) -> Result<Vec<Vec<f32>>, TransformError> {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for operand in operands {
            let (w, rows, cols) = (&operand.w, operand.rows(), operand.cols);
            let d = decompose(w, rows, cols, operand.gram())?;
            let factors = d.factors(w, rows, cols, self.rank)?;
            a.extend(factors.a);
            b.extend(factors.b);
        }
        Ok(vec![a, b])
    }

    fn uses_input(&self) -> bool {
        true
    }
}

/// What a file says of two factors.
pub(super) fn parameters(
    resolver: &Resolver<'_>,
    index: usize,
    rank: u64,
) -> BTreeMap<String, serde_json::Value> {
    BTreeMap::from([
        ("rank".to_string(), rank.into()),
        ("whitened".to_string(), resolver.is_measured(index).into()),
    ])
}

/// Why factors are not worth it, if they are not.
fn too_large(
    resolver: &Resolver<'_>,
    steps: &[&Step],
    members: &[usize],
    rank: u64,
    limit: u64,
) -> Option<String> {
    let parts = steps.iter().flat_map(|s| &s.stored.parts);
    let bytes: u64 = parts.map(Part::bytes).sum();
    let dense = resolver.dense_bytes(members);
    (rank > limit || bytes >= dense).then(|| {
        format!(
            "rank {rank} would take {bytes} bytes, and {} takes {dense}",
            match members {
                [one] => format!("the dense tensor as {}", resolver.base[*one]),
                many => format!("{} dense tensors", many.len()),
            }
        )
    })
}

/// The least rank of one tensor, or of several that read the same input, with a fraction of the output's
/// energy; of a stack, the largest that a slice needs.
fn rank_of_energy(
    resolver: &Resolver<'_>,
    members: &[usize],
    fraction: f64,
) -> Result<u64, PlanError> {
    let failed = resolver.transform_failed(members[0]);
    let tensors: Vec<&ModelTensor> = members.iter().map(|i| resolver.tensor(*i)).collect();
    let mut largest = 1;
    for slice in 0..tensors[0].slices() {
        let operand = match tensors[..] {
            [one] => Operand::slice(&resolver.subject, one, slice),
            _ => Operand::joint(&resolver.subject, &tensors),
        };
        let operand = operand.map_err(&failed)?;
        let d = decompose(&operand.w, operand.rows(), operand.cols, operand.gram())
            .map_err(|e| failed(e.into()))?;
        largest = largest.max(d.rank_of_energy(fraction));
    }
    Ok(largest)
}

/// The rank of a wish that needs no spectrum, in whole blocks.
pub(super) fn counted(rank: Rank, n: u64, m: u64, block: u64) -> u64 {
    match rank {
        Rank::Keep(f) => {
            let r = (f * (n * m) as f64 / (n + m) as f64) as u64;
            (r / block * block).max(block)
        }
        Rank::Fixed(r) => r.next_multiple_of(block),
        Rank::OfRow(part) => ((part * n as f64).round() as u64)
            .max(1)
            .next_multiple_of(block),
        Rank::Energy(_) => block,
    }
}
