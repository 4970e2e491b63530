//! `joint = true`: tensors that read the same input share the factor that reads it.

use std::collections::HashMap;

use dwindle_formats::container::Form;
use dwindle_method::fitting_type::fitting_type;
use dwindle_method::joint::Joint;
use rayon::prelude::*;

use super::{NAME, Svd, parameters, too_large};
use crate::methods::{Make, Method};
use crate::operand::{Operand, TransformError};
use crate::resolve::PlanError;
use crate::resolver::{Factored, Resolved, Resolver, Wish};
use crate::treatment::{Operands, Step, Treatment};

/// Groups of tensors with one factor for the input. Who shares with nobody is treated alone.
#[derive(Debug)]
pub(super) struct JointSvd(pub Svd);

impl Method for JointSvd {
    fn resolve(&self, resolver: &Resolver<'_>, index: usize) -> Result<Resolved, PlanError> {
        self.0.resolve(resolver, index)
    }

    fn resolve_together(
        &self,
        resolver: &Resolver<'_>,
        members: &[usize],
    ) -> Result<Vec<(usize, Resolved)>, PlanError> {
        let groups = readers_of_one_input(resolver, members)?;
        let resolved: Vec<_> = groups
            .par_iter()
            .filter(|group| group.len() > 1)
            .map(|group| joint(resolver, group, &self.0, None))
            .collect::<Result<_, _>>()?;
        Ok(resolved.into_iter().flatten().collect())
    }
}

/// Tensors in groups that read the same input, in file order.
pub(super) fn readers_of_one_input(
    resolver: &Resolver<'_>,
    members: &[usize],
) -> Result<Vec<Vec<usize>>, PlanError> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    let statistics = resolver.subject.measured.statistics;
    for &index in members {
        let tensor = resolver.tensor(index);
        resolver.require_statistics(index, "svd of several tensors")?;
        let input = statistics
            .and_then(|s| s.group(&tensor.name))
            .filter(|_| tensor.shape.len() == 2);
        let key = input.map_or(tensor.name.as_str(), |g| g.name());
        let group = *known.entry(key).or_insert(groups.len());
        match groups.get_mut(group) {
            Some(group) => group.push(index),
            None => groups.push(vec![index]),
        }
    }
    Ok(groups)
}

/// Factors of tensors that read the same input, with one factor for the input. `weights` say what a unit
/// of each one's output error counts.
pub(super) fn joint(
    resolver: &Resolver<'_>,
    members: &[usize],
    svd: &Svd,
    weights: Option<&[f64]>,
) -> Result<Vec<(usize, Resolved)>, PlanError> {
    let wish = Wish {
        text: format!("joint svd with {} factors", svd.ty),
        ..Wish::factors(NAME, svd.ty)
    };
    let n = resolver.tensor(members[0]).shape[0];
    let rows_of = |index: &usize| resolver.tensor(*index).shape[1];
    let m: u64 = members.iter().map(rows_of).sum();
    let ty = fitting_type(svd.ty, n);
    let (rank, _) = svd.rank_of(resolver, members, n, m)?;
    let treatment = Treatment::made(
        Operands::Joint(members.to_vec()),
        SharedFactors {
            rows: members.iter().map(|i| rows_of(i) as usize).collect(),
            rank: rank as usize,
            weights: weights.map(<[f64]>::to_vec),
        },
    );
    let step = |index: &usize| {
        let b = ("b".to_string(), ty, vec![rank, rows_of(index)]);
        let (form, parts) = if *index == members[0] {
            (Form::LowRank, vec![("a".into(), ty, vec![n, rank]), b])
        } else {
            let input = resolver.tensor(members[0]).name.clone();
            (Form::SharedLowRank { input }, vec![b])
        };
        let what = Factored {
            method: NAME,
            parameters: parameters(resolver, *index, rank),
            form,
            parts,
            treatment: treatment.clone(),
        };
        resolver.factored(*index, what)
    };
    let steps: Vec<Step> = members.iter().map(step).collect();
    let all: Vec<&Step> = steps.iter().collect();
    let too_large = too_large(resolver, &all, members, rank, n.min(m));
    let resolved = |(&index, step): (&usize, Step)| match &too_large {
        Some(reason) => (index, resolver.unmet(index, &wish.text, reason.clone())),
        None => (index, (step, resolver.other_type(index, &wish, n, ty))),
    };
    Ok(members.iter().zip(steps).map(resolved).collect())
}

/// A for all, then B of each member.
#[derive(Debug)]
struct SharedFactors {
    /// Of each member.
    rows: Vec<usize>,
    /// Singular values kept.
    rank: usize,
    /// What a unit of each one's output error counts; `None` where each counts relative to its own
    /// output.
    weights: Option<Vec<f64>>,
}

impl Make for SharedFactors {
    fn parts(&self, operands: &[Operand<'_>]) -> Result<Vec<Vec<f32>>, TransformError> {
        let (w, cols, gram) = (&operands[0].w, operands[0].cols, operands[0].gram());
        let joint = Joint::decompose(w, &self.rows, cols, gram, self.weights.as_deref())?;
        let (a, own) = joint.factors(self.rank)?;
        Ok([a].into_iter().chain(own).collect())
    }

    fn uses_input(&self) -> bool {
        true
    }
}
