//! A recipe resolved against one model.

use std::collections::BTreeMap;

use dwindle_formats::container::{Form, Part, StoredPlan, StoredTensor};
use dwindle_formats::gguf::{Metadata, TensorType};
use rayon::prelude::*;

use super::recipe::{Base, Method, Rank, Recipe};
use crate::architecture::{Model, ModelTensor, role, values};
use crate::checkpoint::Source;
use crate::llama::ggml;
use crate::llama::mixture::{FileType, MixtureError, MixtureTensor, ModelDesc, mixture_types};
use crate::method::low_rank::decompose;
use crate::method::prune::Pruning;
use crate::method::quantize::fitting_type;
use crate::method::sparsity::Pattern;
use crate::pipeline::TransformError;
use crate::statistics::{Importance, Measured};

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

/// What becomes of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What the file will say of it.
    pub stored: StoredTensor,
    /// What is done.
    pub treatment: Treatment,
}

/// What is done with a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Treatment {
    /// Every element in a type.
    Store(TensorType),
    /// Two factors.
    LowRank {
        /// Singular values kept.
        rank: u64,
        /// The factors' type.
        ty: TensorType,
    },
    /// Some elements become zero.
    Prune {
        /// How they are chosen.
        pruning: Pruning,
        /// How many, and in what pattern.
        pattern: Pattern,
        /// The type of the rest.
        ty: TensorType,
    },
}

/// A wish that could not be met.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fallback {
    /// The tensor.
    pub tensor: String,
    /// What the recipe wanted.
    pub wanted: String,
    /// What is done instead.
    pub done: String,
    /// Why.
    pub reason: String,
}

/// Why a recipe can't be carried out on a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum PlanError {
    #[error(
        "`{0}` is no preset and no file type; presets are {presets}, file types are {types}",
        presets = names(super::PRESETS.iter().map(|p| p.name)),
        types = names(crate::llama::mixture::FILE_TYPES.iter().map(|t| t.name))
    )]
    UnknownBase(String),
    #[error(
        "tensor `{tensor}` as {ty} needs importance weights; give them with `--importance`, or choose another type"
    )]
    ImportanceMissing { tensor: String, ty: TensorType },
    #[error("tensor `{tensor}`: type {ty} can't be written; choose another")]
    Type { tensor: String, ty: TensorType },
    #[error(transparent)]
    Mixture(#[from] MixtureError),
    #[error("tensor `{tensor}` can't be factorized: {source}")]
    Spectrum {
        tensor: String,
        source: TransformError,
    },
    #[error(
        "`{method}` must know the input of tensor `{tensor}`; give `--stats`, as `dwindle calibrate` measures them"
    )]
    StatisticsMissing {
        tensor: String,
        method: &'static str,
    },
    #[error("tensor `{tensor}` can't be read: {source}")]
    Read {
        tensor: String,
        source: ggml::GgmlError,
    },
    #[error("the model lacks `{0}` in its metadata, which the mixture of types depends on")]
    Metadata(String),
    #[error("no rule of the recipe matches a tensor by {0}; roles of this model are {1}")]
    NothingMatches(String, String),
}

fn names(iter: impl Iterator<Item = &'static str>) -> String {
    iter.map(|n| format!("`{n}`"))
        .collect::<Vec<_>>()
        .join(", ")
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
            .filter(|s| s.stored.form != Form::Dense)
            .map(|s| s.stored.name.as_str())
            .collect()
    }
}

/// Resolves a recipe against a model. Reads tensor data only where a rule's rank depends on it.
///
/// # Errors
/// An unknown base, a type that can't be written or lacks importance weights, a rule that matches
/// nothing, weights that can't be decomposed.
pub fn resolve(
    recipe: &Recipe,
    model: &Model,
    source: &dyn Source,
    measured: &Measured<'_>,
) -> Result<Plan, PlanError> {
    let importance = measured.importance;
    let layers = layer_count(model);
    let (base_types, file_type) = base_types(&recipe.base, model, source, importance)?;
    check_rules_match(recipe, model, layers)?;

    let resolved: Vec<(Step, Option<Fallback>)> = model
        .tensors
        .par_iter()
        .zip(&base_types)
        .map(|(tensor, base)| {
            let source_ty = tensor.source_type(source);
            let (layer, role) = role(&tensor.name);
            let rule = recipe
                .rules
                .iter()
                .rev()
                .find(|r| is_weight(tensor) && r.matches(&tensor.name, role, layer, layers));
            let resolver = Resolver {
                tensor,
                source,
                source_ty,
                base: *base,
                measured,
            };
            resolver.resolve(rule.map(|r| &r.method))
        })
        .collect::<Result<_, _>>()?;
    let mut steps = Vec::with_capacity(resolved.len());
    let mut fallbacks = Vec::new();
    for (step, fallback) in resolved {
        check_writable(&step, importance)?;
        steps.push(step);
        fallbacks.extend(fallback);
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

/// Rules speak of weight matrices; what llama.cpp keeps in F32 stays out of their reach.
fn is_weight(tensor: &ModelTensor) -> bool {
    !tensor.always_f32 && tensor.shape.len() > 1
}

fn layer_count(model: &Model) -> u32 {
    model
        .tensors
        .iter()
        .filter_map(|t| role(&t.name).0)
        .max()
        .map_or(0, |last| last + 1)
}

fn check_rules_match(recipe: &Recipe, model: &Model, layers: u32) -> Result<(), PlanError> {
    let weights: Vec<_> = model.tensors.iter().filter(|t| is_weight(t)).collect();
    for rule in &recipe.rules {
        let hit = weights.iter().any(|t| {
            let (layer, role) = role(&t.name);
            rule.matches(&t.name, role, layer, layers)
        });
        if !hit {
            let mut roles: Vec<&str> = weights.iter().map(|t| role(&t.name).1).collect();
            roles.sort_unstable();
            roles.dedup();
            let sought = format!(
                "roles {:?}, layers {:?}, name {:?}",
                rule.roles, rule.layers, rule.name
            );
            return Err(PlanError::NothingMatches(sought, roles.join(", ")));
        }
    }
    Ok(())
}

fn check_writable(step: &Step, importance: Option<&Importance>) -> Result<(), PlanError> {
    for part in &step.stored.parts {
        let tensor = step.stored.name.clone();
        let unchanged = step.treatment == Treatment::Store(step.stored.ty);
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

/// The type of each tensor where no rule holds, and the file type's number if there is one.
fn base_types(
    base: &Base,
    model: &Model,
    source: &dyn Source,
    importance: Option<&Importance>,
) -> Result<(Vec<TensorType>, Option<u32>), PlanError> {
    let kept = |t: &ModelTensor| {
        if t.always_f32 {
            TensorType::F32
        } else {
            t.source_type(source)
        }
    };
    let name = match base {
        Base::Source => {
            let types: Vec<_> = model.tensors.iter().map(kept).collect();
            let id = dominant_file_type(model, &types);
            return Ok((types, id));
        }
        Base::FileType(name) => name,
    };
    let file_type =
        FileType::from_name(name).ok_or_else(|| PlanError::UnknownBase(name.clone()))?;
    if let Some(plain) = plain_type(file_type.name) {
        let types = model
            .tensors
            .iter()
            .map(|t| if t.always_f32 { TensorType::F32 } else { plain })
            .collect();
        return Ok((types, Some(file_type.id)));
    }
    let tensors: Vec<_> = model
        .tensors
        .iter()
        .map(|t| MixtureTensor {
            name: &t.name,
            shape: &t.shape,
            ty: kept(t),
        })
        .collect();
    let choices = mixture_types(
        &describe(model)?,
        &tensors,
        file_type,
        importance.is_some(),
        false,
    )?;
    let types = choices
        .iter()
        .zip(&tensors)
        .map(|(choice, t)| choice.ty.unwrap_or(t.ty))
        .collect();
    Ok((types, Some(file_type.id)))
}

/// File types that are one plain type for every weight, as the converter writes them.
fn plain_type(name: &str) -> Option<TensorType> {
    match name {
        "f32" => Some(TensorType::F32),
        "f16" => Some(TensorType::F16),
        "bf16" => Some(TensorType::BF16),
        _ => None,
    }
}

/// `general.file_type` of a file in its source's types: that of the type with the most bytes.
fn dominant_file_type(model: &Model, types: &[TensorType]) -> Option<u32> {
    let mut bytes = BTreeMap::new();
    for (tensor, ty) in model.tensors.iter().zip(types) {
        *bytes.entry(*ty).or_insert(0) += ty.bytes(&tensor.shape).unwrap_or(0);
    }
    let (ty, _) = bytes.into_iter().max_by_key(|(ty, n)| (*n, *ty))?;
    FileType::from_name(ty.name()).map(|f| f.id)
}

/// What llama-quantize's mixtures look at besides tensors.
fn describe(model: &Model) -> Result<ModelDesc, PlanError> {
    let get = |suffix: &str| {
        let key = format!("{}.{suffix}", model.architecture);
        match model.metadata.get(&key) {
            // Some families have one value a layer; the mixtures look at the largest.
            Some(dwindle_formats::gguf::Value::Array(a)) => a.max_u64(),
            Some(v) => v.as_u64(),
            None => None,
        }
        .and_then(|v| u32::try_from(v).ok())
        .ok_or(PlanError::Metadata(key))
    };
    let n_embd = get("embedding_length")?;
    let n_head = get("attention.head_count")?;
    let head_dim = n_embd.checked_div(n_head).unwrap_or(0);
    Ok(ModelDesc {
        architecture: model.architecture.clone(),
        n_embd,
        n_ff: get("feed_forward_length").unwrap_or(0),
        n_layer: get("block_count")?,
        n_head,
        n_head_kv: get("attention.head_count_kv").unwrap_or(n_head),
        n_expert: get("expert_count").unwrap_or(0),
        n_embd_head_k: get("attention.key_length").unwrap_or(head_dim),
        n_embd_head_v: get("attention.value_length").unwrap_or(head_dim),
    })
}

fn dense_method(from: TensorType, to: TensorType) -> &'static str {
    match to {
        _ if from == to => "copy",
        ty if ty.is_quantized() => "quantize",
        _ => "convert",
    }
}

struct Resolver<'a> {
    tensor: &'a ModelTensor,
    source: &'a dyn Source,
    source_ty: TensorType,
    base: TensorType,
    measured: &'a Measured<'a>,
}

type Resolved = (Step, Option<Fallback>);

impl Resolver<'_> {
    fn resolve(&self, method: Option<&Method>) -> Result<Resolved, PlanError> {
        match method {
            None => Ok(self.dense(self.base, None)),
            Some(Method::Quantize(ty)) => Ok(self.quantize(ty.unwrap_or(self.source_ty))),
            Some(Method::Svd { rank, ty }) => self.low_rank(*rank, *ty),
            Some(Method::Prune {
                pruning,
                pattern,
                ty,
            }) => self.prune(*pruning, *pattern, ty.unwrap_or(self.source_ty)),
        }
    }

    fn quantize(&self, wanted: TensorType) -> Resolved {
        let row = self.tensor.shape[0];
        let fitting = fitting_type(wanted, row);
        let reason = format!(
            "rows of {row} elements are no multiple of {wanted}'s block of {}",
            wanted.block_len()
        );
        self.dense(
            fitting,
            (fitting != wanted).then(|| (wanted.to_string(), reason)),
        )
    }

    fn prune(
        &self,
        pruning: Pruning,
        pattern: Pattern,
        ty: TensorType,
    ) -> Result<Resolved, PlanError> {
        let name = &self.tensor.name;
        let rows: u64 = self.tensor.row_count();
        let known = self
            .measured
            .statistics
            .is_some_and(|s| s.group(name).is_some_and(|g| g.blocks.len() == 1));
        if pruning.needs_gram() && !known {
            return Err(PlanError::StatisticsMissing {
                tensor: name.clone(),
                method: pruning.name(),
            });
        }
        let (mut step, fallback) = self.quantize(ty);
        let Treatment::Store(ty) = step.treatment else {
            return Ok((step, fallback));
        };
        let zeros = pattern.zeros((rows * self.tensor.row_len()) as usize);
        step.stored.method = pruning.name().into();
        step.stored
            .parameters
            .insert("zeros".into(), (zeros as u64).into());
        step.treatment = Treatment::Prune {
            pruning,
            pattern,
            ty,
        };
        Ok((step, fallback))
    }

    fn dense(&self, ty: TensorType, unmet: Option<(String, String)>) -> Resolved {
        let step = Step {
            stored: StoredTensor {
                name: self.tensor.name.clone(),
                shape: self.tensor.shape.clone(),
                ty: self.source_ty,
                method: dense_method(self.source_ty, ty).into(),
                parameters: BTreeMap::new(),
                form: Form::Dense,
                parts: vec![Part {
                    name: self.tensor.name.clone(),
                    ty,
                    shape: self.tensor.shape.clone(),
                }],
            },
            treatment: Treatment::Store(ty),
        };
        let fallback = unmet.map(|(wanted, reason)| Fallback {
            tensor: self.tensor.name.clone(),
            wanted,
            done: ty.to_string(),
            reason,
        });
        (step, fallback)
    }

    fn low_rank(&self, rank: Rank, wanted_ty: TensorType) -> Result<Resolved, PlanError> {
        let wish = format!("svd with {wanted_ty} factors");
        let unmet = |reason: String| Ok(self.dense(self.base, Some((wish.clone(), reason))));
        let [n, m] = self.tensor.shape[..] else {
            return unmet(format!("it has {} dimensions", self.tensor.shape.len()));
        };
        let ty = fitting_type(wanted_ty, n);
        let block = ty.block_len();
        let wanted = match rank {
            Rank::Fixed(r) => r.next_multiple_of(block),
            Rank::Keep(f) => {
                let r = (f * (n * m) as f64 / (n + m) as f64) as u64;
                (r / block * block).max(block)
            }
            Rank::Energy(f) => self.rank_of_energy(f, n, m)?.next_multiple_of(block),
        };
        let name = |suffix: &str| format!("{}.{suffix}", self.tensor.name);
        let parts = vec![
            Part {
                name: name("a"),
                ty,
                shape: vec![n, wanted],
            },
            Part {
                name: name("b"),
                ty,
                shape: vec![wanted, m],
            },
        ];
        let bytes: u64 = parts.iter().map(Part::bytes).sum();
        let dense = self.base.bytes(&self.tensor.shape).unwrap_or(u64::MAX);
        if wanted > n.min(m) || bytes >= dense {
            return unmet(format!(
                "rank {wanted} would take {bytes} bytes, the dense tensor as {} takes {dense}",
                self.base
            ));
        }
        let mut parameters = BTreeMap::new();
        parameters.insert("rank".to_string(), wanted.into());
        let whitened = self
            .measured
            .gram(&self.tensor.name, 0)
            .is_ok_and(|g| g.is_some());
        parameters.insert("whitened".to_string(), whitened.into());
        let step = Step {
            stored: StoredTensor {
                name: self.tensor.name.clone(),
                shape: self.tensor.shape.clone(),
                ty: self.source_ty,
                method: "svd".into(),
                parameters,
                form: Form::LowRank,
                parts,
            },
            treatment: Treatment::LowRank { rank: wanted, ty },
        };
        let fallback = (ty != wanted_ty).then(|| Fallback {
            tensor: self.tensor.name.clone(),
            wanted: wish,
            done: format!("svd with {ty} factors"),
            reason: format!("rows of {n} elements don't fit {wanted_ty}"),
        });
        Ok((step, fallback))
    }

    fn rank_of_energy(&self, fraction: f64, n: u64, m: u64) -> Result<u64, PlanError> {
        let spectrum = |source: TransformError| PlanError::Spectrum {
            tensor: self.tensor.name.clone(),
            source,
        };
        let w = values(self.tensor, self.source, 0..m).map_err(|e| spectrum(e.into()))?;
        let gram = self.measured.gram(&self.tensor.name, 0);
        let (m, n) = (m as usize, n as usize);
        decompose(&w, m, n, gram.map_err(|e| spectrum(e.into()))?)
            .map(|d| d.rank_of_energy(fraction))
            .map_err(|e| spectrum(e.into()))
    }
}
