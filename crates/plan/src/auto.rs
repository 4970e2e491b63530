//! One budget for all tensors of a rule: which get factors of which rank, which share a factor, and
//! which stay whole, by what compressing each alone was measured to cost.

use dwindle_formats::gguf::TensorType;
use rayon::prelude::*;

use super::operand::{Operand, TransformError};
use super::resolve::PlanError;
use super::resolver::{Resolved, Resolver};
use super::rule::Rank;
use dwindle_architecture::ModelTensor;
use dwindle_method::allocate::{Choice, Share, Spectrum, choose, frontier};
use dwindle_method::joint::Joint;
use dwindle_method::low_rank::decompose;
use dwindle_method::quantize::fitting_type;

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

impl Resolver<'_> {
    /// Factors for the tensors of a rule, within a fraction of all their parameters.
    pub(super) fn auto(
        &self,
        members: &[usize],
        keep: f64,
        joint: bool,
        ty: TensorType,
    ) -> Result<Vec<(usize, Resolved)>, PlanError> {
        let mut resolved = Vec::new();
        let mut matrices = Vec::new();
        for &index in members {
            match self.why_not(index)? {
                Some(reason) => resolved.push((index, self.unmet(index, "svd", reason))),
                None => matrices.push(index),
            }
        }
        let Some(&first) = matrices.first() else {
            return Ok(resolved);
        };
        let groups = if joint {
            self.readers_of_one_input(&matrices)?
        } else {
            matrices.iter().map(|i| vec![*i]).collect()
        };
        let groups: Vec<Group> = groups
            .into_par_iter()
            .map(|members| self.group(members, ty))
            .collect::<Result<_, _>>()?;
        let parameters: u64 = matrices.iter().map(|i| elements(self.tensor(*i))).sum();
        let budget = (keep * parameters as f64) as u64;
        let choices: Vec<Vec<Choice>> = groups.iter().map(|g| g.choices.clone()).collect();
        let chosen = choose(&choices, budget)
            .map_err(|e| self.transform_failed(first)(TransformError::from(e)))?;
        for (group, choice) in groups.iter().zip(chosen.shares) {
            match &group.wishes[choice] {
                Wish::Joint(rank) => {
                    let weights = Some(group.weights.as_slice());
                    resolved.extend(self.joint(&group.members, Rank::Fixed(*rank), weights, ty)?);
                }
                Wish::Apart(shares) => {
                    for (&index, share) in group.members.iter().zip(shares) {
                        let of_one = match share {
                            Share::Dense => self.dense(index, self.base[index], None),
                            Share::Rank(rank) => {
                                self.low_rank(index, Rank::Fixed(*rank as u64), ty)?
                            }
                        };
                        resolved.push((index, of_one));
                    }
                }
            }
        }
        Ok(resolved)
    }

    /// Why a tensor can't take part in a budget, where the files are there that others need.
    fn why_not(&self, index: usize) -> Result<Option<String>, PlanError> {
        let tensor = self.tensor(index);
        if !matches!(tensor.shape.len(), 2 | 3) {
            return Ok(Some(format!("it has {} dimensions", tensor.shape.len())));
        }
        if self.subject.measured.statistics.is_none() {
            self.require_statistics(index, "`rank = \"auto\"`")?;
        }
        if !self.is_measured(index) {
            return Ok(Some("its input was not measured, or not whole".into()));
        }
        let Some(diagnosis) = self.subject.measured.diagnosis else {
            return Err(PlanError::DiagnosisMissing {
                tensor: tensor.name.clone(),
            });
        };
        let is_known = diagnosis.sensitivity(&tensor.name).is_some();
        Ok((!is_known).then(|| "the diagnosis does not know it".into()))
    }

    fn group(&self, members: Vec<usize>, ty: TensorType) -> Result<Group, PlanError> {
        let weights: Vec<f64> = members.iter().map(|i| self.sensitivity(*i)).collect();
        let n = self.tensor(members[0]).shape[0];
        let granule = fitting_type(ty, n).block_len() as usize;
        let failed = self.transform_failed(members[0]);
        let mut shares = Vec::new();
        let mut items = Vec::new();
        for (&index, weight) in members.iter().zip(&weights) {
            let tensor = self.tensor(index);
            let energies = self.energies(tensor).map_err(&failed)?;
            let slices: u64 = tensor.shape.iter().skip(2).product();
            let options = Spectrum {
                energies: &energies,
                rank_cost: (n + tensor.shape[1]) * slices,
                dense_cost: Some(elements(tensor)),
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
            for (rank, choice) in self
                .joint_choices(&members, &weights, granule)
                .map_err(&failed)?
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

    /// What a unit of output error costs, of a tensor that takes part.
    fn sensitivity(&self, index: usize) -> f64 {
        let name = &self.tensor(index).name;
        let known = self
            .subject
            .measured
            .diagnosis
            .and_then(|d| d.sensitivity(name));
        known.unwrap_or(0.0)
    }

    /// The output energy that each rank adds; of a stack, over all slices by their tokens.
    fn energies(&self, tensor: &ModelTensor) -> Result<Vec<f64>, TransformError> {
        let slices = tensor.shape.get(2).copied().unwrap_or(1) as usize;
        let (n, m) = (tensor.shape[0] as usize, tensor.shape[1] as usize);
        let tokens = |slice| self.subject.measured.tokens(&tensor.name, slice) as f64;
        let total: f64 = (0..slices).map(tokens).sum();
        let mut sum = vec![0.0; n.min(m)];
        for slice in 0..slices {
            let operand = Operand::slice(&self.subject, tensor, slice)?;
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
        &self,
        members: &[usize],
        weights: &[f64],
        granule: usize,
    ) -> Result<Vec<(u64, Choice)>, TransformError> {
        let tensors: Vec<&ModelTensor> = members.iter().map(|i| self.tensor(*i)).collect();
        let rows: Vec<usize> = tensors.iter().map(|t| t.row_count() as usize).collect();
        let operand = Operand::joint(&self.subject, &tensors)?;
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
}

fn elements(tensor: &ModelTensor) -> u64 {
    tensor.shape.iter().product()
}
