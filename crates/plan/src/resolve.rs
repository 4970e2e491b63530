//! A recipe resolved against one model.

use std::collections::HashSet;

use dwindle_architecture::{Model, role};
use dwindle_formats::container::{Part, StoredPlan};
use dwindle_formats::gguf::{Metadata, TensorType};
use dwindle_ggml as ggml;
use dwindle_ggml::MixtureError;
use dwindle_statistics::Importance;
use rayon::prelude::*;

use super::base::base_types;
use super::recipe::{Recipe, Rounding};
use super::resolver::{Resolved, Resolver};
use super::rule_index::RuleIndex;
use super::subject::Subject;
use super::tensor_error::TensorError;
use super::treatment::{Fallback, Step, Treatment};

/// The version of ggml's quantization formats, `general.quantization_version`.
const QUANTIZATION_VERSION: u32 = 2;

/// Everything that the pipeline will do, in output order, and everything that the file will say.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The model's metadata, file type included.
    pub metadata: Metadata,
    /// One step a tensor, in the order of [`Model::tensors`].
    pub steps: Vec<Step>,
    /// Where a wish could not be met and what was done instead.
    pub fallbacks: Vec<Fallback>,
}

/// Why a recipe can't be carried out on a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum PlanError {
    #[error(
        "tensor `{tensor}` as {ty} needs importance weights; supply them, or choose another type"
    )]
    ImportanceMissing { tensor: String, ty: TensorType },
    #[error("tensor `{tensor}`: type {ty} can't be written; choose another")]
    Type { tensor: String, ty: TensorType },
    #[error(transparent)]
    Mixture(#[from] MixtureError),
    #[error("tensor `{}` can't be factorized: {}", .0.tensor, .0.source)]
    Spectrum(TensorError),
    #[error("`{method}` needs statistics of the input of tensor `{tensor}`, and there are none")]
    StatisticsMissing {
        tensor: String,
        method: &'static str,
    },
    #[error(
        "`{method}` must know the whole input of tensor `{tensor}`, and the statistics have its {width} elements in blocks; measure it with a wider limit, or choose another method"
    )]
    StatisticsInBlocks {
        tensor: String,
        method: &'static str,
        width: usize,
    },
    #[error(
        "`rank = \"auto\"` shares a budget by measured sensitivity; supply a diagnosis, which measures that of `{tensor}`"
    )]
    DiagnosisMissing { tensor: String },
    #[error(
        "no tensor becomes a quantized type whose input was measured, so none can be rounded for its output; supply statistics, and choose a quantized type"
    )]
    NothingToRound,
    #[error("the model lacks `{0}` in its metadata, which the mixture of types depends on")]
    Metadata(String),
    #[error("no rule of the recipe matches a tensor by {0}; roles of this model are {1}")]
    NothingMatches(String, String),
}

impl Plan {
    /// What the file will say of its tensors.
    pub fn stored(&self) -> StoredPlan {
        StoredPlan {
            tensors: self.steps.iter().map(|s| s.stored.clone()).collect(),
        }
    }

    /// Bytes of all parts before compression.
    pub fn bytes(&self) -> u64 {
        self.steps
            .iter()
            .flat_map(|s| &s.stored.parts)
            .map(Part::bytes)
            .sum()
    }

    /// Tensors that a stock GGUF file can't hold.
    pub fn not_stock(&self) -> Vec<&str> {
        self.steps
            .iter()
            .filter(|s| !s.is_dense())
            .map(|s| s.stored.name.as_str())
            .collect()
    }
}

/// Resolves a recipe against a model. Reads tensor data only where a rule's ranks depend on it.
///
/// # Errors
/// A type that can't be written or lacks importance weights, a rule that matches
/// nothing, weights that can't be decomposed.
pub fn resolve(recipe: &Recipe, subject: &Subject<'_>) -> Result<Plan, PlanError> {
    let Subject {
        model, measured, ..
    } = *subject;
    let importance = measured.importance;
    let layers = layer_count(model);
    let (base_types, file_type) = base_types(&recipe.base, subject)?;
    check_rules_match(recipe, model, layers)?;

    let (rules, members) = RuleIndex::new(&recipe.rules, layers).assign(&model.tensors);
    let resolver = Resolver {
        subject: *subject,
        base: &base_types,
    };
    // Rules that speak of several tensors at once come first; what they leave is resolved singly.
    let mut resolved: Vec<Option<Resolved>> = vec![None; model.tensors.len()];
    for (rule, members) in recipe.rules.iter().zip(&members) {
        for (index, of_group) in rule.method.resolve_together(&resolver, members)? {
            resolved[index] = Some(of_group);
        }
    }
    let resolved: Vec<Resolved> = resolved
        .into_par_iter()
        .enumerate()
        .map(|(i, done)| match (done, rules[i]) {
            (Some(done), _) => Ok(done),
            (None, Some(rule)) => recipe.rules[rule].method.resolve(&resolver, i),
            (None, None) => Ok(resolver.dense(i, base_types[i], None)),
        })
        .collect::<Result<_, _>>()?;

    let mut steps = Vec::with_capacity(resolved.len());
    let mut fallbacks = Vec::new();
    for (index, (mut step, fallback)) in resolved.into_iter().enumerate() {
        check_writable(&step, importance)?;
        if recipe.rounding == Rounding::Output {
            resolver.round_for_output(index, &mut step);
        }
        fallbacks.extend(fallback);
        fallbacks.extend(resolver.unseen(index, &step, recipe.rounding));
        steps.push(step);
    }
    let rounds = |s: &Step| matches!(s.treatment, Treatment::Round);
    if recipe.rounding == Rounding::Output && !steps.iter().any(rounds) {
        return Err(PlanError::NothingToRound);
    }
    let mut metadata = model.metadata.clone();
    if let Some(id) = file_type {
        metadata.set("general.file_type", id);
    }
    metadata.set("general.quantization_version", QUANTIZATION_VERSION);
    Ok(Plan {
        metadata,
        steps,
        fallbacks,
    })
}

fn layer_count(model: &Model) -> u32 {
    model
        .tensors
        .iter()
        .filter_map(|t| role(&t.name).0)
        .max()
        .map_or(0, |last| last.saturating_add(1))
}

fn check_rules_match(recipe: &Recipe, model: &Model, layers: u32) -> Result<(), PlanError> {
    let weights: Vec<_> = model.tensors.iter().filter(|t| t.is_weight()).collect();
    let names: HashSet<&str> = weights.iter().map(|t| t.name.as_str()).collect();
    for rule in &recipe.rules {
        let hit = match rule.only_tensor() {
            Some(name) => names.contains(name),
            None => weights.iter().any(|t| {
                let (layer, role) = role(&t.name);
                rule.matches(&t.name, role, layer, layers)
            }),
        };
        if !hit {
            let mut roles: Vec<&str> = weights.iter().map(|t| role(&t.name).1).collect();
            roles.sort_unstable();
            roles.dedup();
            return Err(PlanError::NothingMatches(rule.sought(), roles.join(", ")));
        }
    }
    Ok(())
}

fn check_writable(step: &Step, importance: Option<&Importance>) -> Result<(), PlanError> {
    for part in &step.stored.parts {
        let tensor = step.stored.name.clone();
        let unchanged = step.treatment.is_store() && part.ty == step.stored.ty;
        if !unchanged && !ggml::writable(part.ty) {
            return Err(PlanError::Type {
                tensor,
                ty: part.ty,
            });
        }
        let known = || importance.is_some_and(|i| i.has(&part.name, part.shape[0]));
        if !unchanged && ggml::requires_importance(part.ty) && !known() {
            return Err(PlanError::ImportanceMissing {
                tensor,
                ty: part.ty,
            });
        }
    }
    Ok(())
}
