//! `rank = "auto"`: one budget for all tensors of a rule. Which get factors of which rank, which share a
//! factor, and which stay whole follows from what compressing each alone was measured to cost.

use dwindle_architecture::ModelTensor;
use dwindle_formats::gguf::TensorType;
use dwindle_method::allocate::{Choice, Share, Spectrum, choose, frontier};
use dwindle_method::fitting_type::fitting_type;
use dwindle_method::joint::Joint;
use dwindle_method::low_rank::decompose;
use rayon::prelude::*;

use super::joint::{joint, readers_of_one_input};
use super::{NAME, Rank, Svd};
use crate::methods::Method;
use crate::operand::{Operand, TransformError};
use crate::resolve::PlanError;
use crate::resolver::{Resolved, Resolver};

/// Factors for the tensors of a rule, within a fraction of all their parameters.
#[derive(Debug)]
pub(super) struct Auto {
    /// The fraction.
    pub keep: f64,
    /// Whether tensors that read the same input may share the factor that reads it.
    pub joint: bool,
    /// The factors' element type.
    pub ty: TensorType,
}

/// What may become of tensors that read the same input.
enum Wish {
    /// Each for itself.
    Apart(Vec<Share>),
    /// One factor for the input.
    Joint(u64),
}

/// Tensors that read the same input, with what each choice costs and loses.
struct Group {
    members: Vec<usize>,
    weights: Vec<f64>,
    choices: Vec<Choice>,
    wishes: Vec<Wish>,
}

impl Method for Auto {
    /// The budget is resolved for all of a rule's tensors, so that none is left.
    fn resolve(&self, resolver: &Resolver<'_>, index: usize) -> Result<Resolved, PlanError> {
        Ok(resolver.dense(index, resolver.base[index], None))
    }

    fn resolve_together(
        &self,
        resolver: &Resolver<'_>,
        members: &[usize],
    ) -> Result<Vec<(usize, Resolved)>, PlanError> {
        let mut resolved = Vec::new();
        let mut matrices = Vec::new();
        for &index in members {
            match why_not(resolver, index)? {
                Some(reason) => resolved.push((index, resolver.unmet(index, NAME, reason))),
                None => matrices.push(index),
            }
        }
        let Some(&first) = matrices.first() else {
            return Ok(resolved);
        };
        let groups = if self.joint {
            readers_of_one_input(resolver, &matrices)?
        } else {
            matrices.iter().map(|i| vec![*i]).collect()
        };
        let groups: Vec<Group> = groups
            .into_par_iter()
            .map(|members| Group::new(resolver, members, self.ty))
            .collect::<Result<_, _>>()?;
        let parameters: u64 = matrices
            .iter()
            .map(|i| resolver.tensor(*i).elements())
            .sum();
        let budget = (self.keep * parameters as f64) as u64;
        let choices: Vec<Vec<Choice>> = groups.iter().map(|g| g.choices.clone()).collect();
        let chosen = choose(&choices, budget)
            .map_err(|e| resolver.transform_failed(first)(TransformError::from(e)))?;
        for (group, choice) in groups.iter().zip(chosen.shares) {
            group.resolve(resolver, choice, self.ty, &mut resolved)?;
        }
        Ok(resolved)
    }
}

/// Why a tensor can't take part in a budget, where the files are there that others need.
fn why_not(resolver: &Resolver<'_>, index: usize) -> Result<Option<String>, PlanError> {
    let tensor = resolver.tensor(index);
    if !matches!(tensor.shape.len(), 2 | 3) {
        return Ok(Some(format!("it has {} dimensions", tensor.shape.len())));
    }
    if resolver.subject.measured.statistics.is_none() {
        resolver.require_statistics(index, "rank = \"auto\"")?;
    }
    if !resolver.is_measured(index) {
        return Ok(Some("its input was not measured, or not whole".into()));
    }
    let Some(diagnosis) = resolver.subject.measured.diagnosis else {
        return Err(PlanError::DiagnosisMissing {
            tensor: tensor.name.clone(),
        });
    };
    let is_known = diagnosis.sensitivity(&tensor.name).is_some();
    Ok((!is_known).then(|| "the diagnosis does not know it".into()))
}

impl Group {
    /// With every choice that can pay.
    fn new(
        resolver: &Resolver<'_>,
        members: Vec<usize>,
        ty: TensorType,
    ) -> Result<Group, PlanError> {
        let weights: Vec<f64> = members.iter().map(|i| sensitivity(resolver, *i)).collect();
        let n = resolver.tensor(members[0]).shape[0];
        let granule = fitting_type(ty, n).block_len() as usize;
        let failed = resolver.transform_failed(members[0]);
        let mut shares = Vec::new();
        let mut items = Vec::new();
        for (&index, weight) in members.iter().zip(&weights) {
            let tensor = resolver.tensor(index);
            let energies = energies(resolver, tensor).map_err(&failed)?;
            let slices: u64 = tensor.slices() as u64;
            let options = Spectrum {
                energies: &energies,
                rank_cost: (n + tensor.shape[1]) * slices,
                dense_cost: Some(tensor.elements()),
                weight: *weight,
                least_rank: 1,
            }
            .options(granule);
            items.push(
                options
                    .iter()
                    .map(|(_, choice)| *choice)
                    .collect::<Vec<_>>(),
            );
            shares.push(options);
        }
        let (mut choices, mut wishes) = (Vec::new(), Vec::new());
        for (picked, choice) in frontier(&items).map_err(|e| failed(e.into()))? {
            let apart = picked.iter().zip(&shares).map(|(i, options)| options[*i].0);
            wishes.push(Wish::Apart(apart.collect()));
            choices.push(choice);
        }
        if members.len() > 1 {
            for (rank, choice) in
                joint_choices(resolver, &members, &weights, granule).map_err(&failed)?
            {
                wishes.push(Wish::Joint(rank));
                choices.push(choice);
            }
        }
        Ok(Group {
            members,
            weights,
            choices,
            wishes,
        })
    }

    /// Adds what becomes of the tensors by a choice.
    fn resolve(
        &self,
        resolver: &Resolver<'_>,
        choice: usize,
        ty: TensorType,
        resolved: &mut Vec<(usize, Resolved)>,
    ) -> Result<(), PlanError> {
        let of_rank = |rank| Svd {
            rank: Rank::Fixed(rank),
            ty,
        };
        match &self.wishes[choice] {
            Wish::Joint(rank) => {
                let weights = Some(self.weights.as_slice());
                resolved.extend(joint(resolver, &self.members, &of_rank(*rank), weights)?);
            }
            Wish::Apart(shares) => {
                for (&index, share) in self.members.iter().zip(shares) {
                    let of_one = match share {
                        Share::Dense => resolver.dense(index, resolver.base[index], None),
                        Share::Rank(rank) => of_rank(*rank as u64).resolve(resolver, index)?,
                    };
                    resolved.push((index, of_one));
                }
            }
        }
        Ok(())
    }
}

/// What a unit of output error costs, of a tensor that takes part.
fn sensitivity(resolver: &Resolver<'_>, index: usize) -> f64 {
    let name = &resolver.tensor(index).name;
    let known = resolver
        .subject
        .measured
        .diagnosis
        .and_then(|d| d.sensitivity(name));
    known.unwrap_or(0.0)
}

/// The output energy that each rank adds; of a stack, over all slices by their tokens.
fn energies(resolver: &Resolver<'_>, tensor: &ModelTensor) -> Result<Vec<f64>, TransformError> {
    let slices = tensor.slices();
    let (n, m) = (tensor.shape[0] as usize, tensor.shape[1] as usize);
    let tokens = |slice| resolver.subject.measured.tokens(&tensor.name, slice) as f64;
    let total: f64 = (0..slices).map(tokens).sum();
    let mut sum = vec![0.0; n.min(m)];
    for slice in 0..slices {
        let operand = Operand::slice(&resolver.subject, tensor, slice)?;
        let energies = decompose(&operand.w, m, n, operand.gram())?.energies();
        let share = if total > 0.0 {
            tokens(slice) / total
        } else {
            0.0
        };
        sum.iter_mut()
            .zip(energies)
            .for_each(|(s, e)| *s += share * e);
    }
    Ok(sum)
}

fn joint_choices(
    resolver: &Resolver<'_>,
    members: &[usize],
    weights: &[f64],
    granule: usize,
) -> Result<Vec<(u64, Choice)>, TransformError> {
    let tensors: Vec<&ModelTensor> = members.iter().map(|i| resolver.tensor(*i)).collect();
    let rows: Vec<usize> = tensors.iter().map(|t| t.row_count() as usize).collect();
    let operand = Operand::joint(&resolver.subject, &tensors)?;
    let joint = Joint::decompose(
        &operand.w,
        &rows,
        operand.cols,
        operand.gram(),
        Some(weights),
    )?;
    let options = Spectrum {
        energies: &joint.energies(),
        rank_cost: (operand.cols + rows.iter().sum::<usize>()) as u64,
        dense_cost: None,
        weight: 1.0,
        least_rank: 1,
    }
    .options(granule);
    Ok(options
        .into_iter()
        .filter_map(|(share, choice)| match share {
            Share::Rank(rank) => Some((rank as u64, choice)),
            Share::Dense => None,
        })
        .collect())
}
