//! Decompositions of tensors of three ways (heads, experts or layers of rows of elements), one file each,
//! and what they share: the keys, what the tensor is, and whether its factors are worth it.

pub(super) mod cp;
mod ranks;
pub(super) mod tensor_train;
pub(super) mod tucker;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use dwindle_architecture::{ModelTensor, role};
use dwindle_formats::container::{Form, Over, Part};
use dwindle_formats::gguf::TensorType;
use rayon::prelude::*;

use super::keys::Rank;
use super::svd::Svd;
use super::{Make, Method};
use crate::operand::{Operand, TransformError};
use crate::resolve::PlanError;
use crate::resolver::{Factored, Resolved, Resolver, Wish};
use crate::treatment::{Fallback, Operands, Step, Treatment};
use ranks::Ranks;

/// Neighbouring layers of a stack where a rule does not say.
const STACK: u64 = 4;

/// One of the decompositions.
trait Decomposition: fmt::Debug + Send + Sync {
    /// What recipes call it.
    fn name(&self) -> &'static str;

    /// Ranks, parts and form for a tensor of three ways.
    fn decompose(
        &self,
        resolver: &Resolver<'_>,
        stack: &Stack,
        wanted: &Wanted,
    ) -> Result<Decomposed, TransformError>;

    /// What becomes of a matrix by itself, for which the decomposition is svd.
    fn matrix(
        &self,
        resolver: &Resolver<'_>,
        index: usize,
        wanted: &Wanted,
    ) -> Result<Resolved, PlanError> {
        let rank = match &wanted.ranks {
            Ranks::Keep(keep) => Rank::Keep(*keep),
            Ranks::Tolerance(t) => Rank::Energy(1.0 - t * t),
            Ranks::Fixed(ranks) => Rank::Fixed(ranks.iter().copied().min().unwrap_or(1)),
        };
        let svd = Svd {
            rank,
            ty: wanted.ty,
        };
        let (step, note) = svd.resolve(resolver, index)?;
        let name = self.name();
        let note = note.unwrap_or_else(|| Fallback {
            tensor: step.stored.name.clone(),
            wanted: name.to_string(),
            done: "svd".to_string(),
            reason: format!("for a plain matrix {name} is svd"),
        });
        Ok((step, Some(note)))
    }
}

/// Ranks and type as a rule wants them.
#[derive(Debug)]
struct Wanted {
    ranks: Ranks,
    /// The factors' element type.
    ty: TensorType,
}

/// A tensor of three ways.
#[derive(Debug, Clone)]
struct Stack {
    /// What the first way is.
    over: Over,
    /// The tensors that it is made of: one, or one a layer.
    members: Vec<usize>,
    /// d₀ slices of d₁ rows of d₂ elements.
    dims: [usize; 3],
}

impl Stack {
    fn operand<'a>(&self, resolver: &Resolver<'a>) -> Result<Operand<'a>, TransformError> {
        let tensors: Vec<&ModelTensor> = self.members.iter().map(|i| resolver.tensor(*i)).collect();
        Operand::stack(&resolver.subject, &tensors, self.over)
    }
}

/// A decomposition whose ranks are chosen.
struct Decomposed {
    ranks: Vec<usize>,
    /// Suffix, type and shape.
    parts: Vec<(String, TensorType, Vec<u64>)>,
    form: Form,
    by: Arc<dyn Make>,
}

/// A decomposition as a rule asks for it.
#[derive(Debug)]
struct ThreeWays<D> {
    decomposition: D,
    /// What the first way is; `None` for the experts of a stack, else for a plain matrix.
    over: Option<Over>,
    /// Neighbouring layers of a stack over layers.
    stack: u64,
    wanted: Wanted,
}

/// The method of keys that were read. `stack` counts layers where a rule says how many.
fn checked<D: Decomposition + 'static>(
    decomposition: D,
    over: Option<Over>,
    stack: Option<u64>,
    wanted: Wanted,
) -> Result<Arc<dyn Method>, String> {
    let stack = stack.unwrap_or(STACK);
    if stack < 2 {
        return Err(format!("`stack` is {stack}, expected 2 layers or more"));
    }
    Ok(Arc::new(ThreeWays {
        decomposition,
        over,
        stack,
        wanted,
    }))
}

/// Refuses `stack` where nothing is stacked.
fn stack_has_meaning(name: &str, over: Option<Over>, stack: Option<u64>) -> Result<(), String> {
    match (stack, over) {
        (None, _) | (_, Some(Over::Layers)) => Ok(()),
        _ => Err(format!(
            "`stack` has no meaning for `{name}` without `over = \"layers\"`"
        )),
    }
}

impl<D: Decomposition> Method for ThreeWays<D> {
    fn resolve(&self, resolver: &Resolver<'_>, index: usize) -> Result<Resolved, PlanError> {
        let shape = &resolver.tensor(index).shape;
        let matrix = || self.decomposition.matrix(resolver, index, &self.wanted);
        let dims = match (self.over, &shape[..]) {
            (None, [_, _]) => return matrix(),
            (None | Some(Over::Experts), [n, m, e]) => Ok((Over::Experts, [*e, *m, *n])),
            (Some(Over::Experts), _) => Err("it has no experts".to_string()),
            (Some(Over::Heads), [n, m]) => {
                heads(resolver, index).map(|h| (Over::Heads, [h, m / h, *n]))
            }
            (Some(Over::Layers), [_, _]) => {
                let (step, note) = matrix()?;
                let reason = "no neighbouring layer is left to stack it with".to_string();
                return Ok((step, note.map(|n| Fallback { reason, ..n })));
            }
            _ => Err(format!("it has {} dimensions", shape.len())),
        };
        match dims {
            Ok((over, dims)) => {
                let stack = Stack {
                    over,
                    members: vec![index],
                    dims: dims.map(|d| d as usize),
                };
                Ok(self.of_stack(resolver, &stack)?.remove(0).1)
            }
            Err(reason) => Ok(resolver.unmet(index, self.decomposition.name(), reason)),
        }
    }

    /// Stacks of the same role over neighbouring layers; a tensor that is left alone is left out.
    fn resolve_together(
        &self,
        resolver: &Resolver<'_>,
        members: &[usize],
    ) -> Result<Vec<(usize, Resolved)>, PlanError> {
        if self.over != Some(Over::Layers) {
            return Ok(Vec::new());
        }
        let resolved: Vec<_> = layer_stacks(resolver, members, self.stack as usize)
            .par_iter()
            .map(|stack| self.of_stack(resolver, stack))
            .collect::<Result<_, _>>()?;
        Ok(resolved.into_iter().flatten().collect())
    }
}

impl<D: Decomposition> ThreeWays<D> {
    /// The step of the tensor that holds the factors, and of those that are slices of it.
    fn of_stack(
        &self,
        resolver: &Resolver<'_>,
        stack: &Stack,
    ) -> Result<Vec<(usize, Resolved)>, PlanError> {
        let holder = stack.members[0];
        let decomposed = self
            .decomposition
            .decompose(resolver, stack, &self.wanted)
            .map_err(resolver.transform_failed(holder))?;
        let whitened = stack.members.iter().all(|i| resolver.is_measured(*i));
        let what = |form, parts, treatment| Factored {
            method: self.decomposition.name(),
            parameters: BTreeMap::from([
                ("ranks".to_string(), decomposed.ranks.clone().into()),
                ("over".to_string(), stack.over.to_string().into()),
                ("whitened".to_string(), whitened.into()),
            ]),
            form,
            parts,
            treatment,
        };
        let treatment = Treatment::Made {
            of: Operands::Stack {
                over: stack.over,
                members: stack.members.clone(),
            },
            by: decomposed.by.clone(),
        };
        let whole = what(decomposed.form.clone(), decomposed.parts.clone(), treatment);
        let mut steps = vec![resolver.factored(holder, whole)];
        for (k, index) in stack.members.iter().enumerate().skip(1) {
            let form = Form::Slice {
                of: resolver.tensor(holder).name.clone(),
                index: k as u64,
            };
            steps.push(resolver.factored(*index, what(form, Vec::new(), Treatment::Slice)));
        }
        let wish = Wish::factors(self.decomposition.name(), self.wanted.ty);
        Ok(if_smaller(resolver, steps, &stack.members, &wish))
    }
}

/// Stacks of so many neighbouring layers, of tensors of the same role and shape.
fn layer_stacks(resolver: &Resolver<'_>, members: &[usize], size: usize) -> Vec<Stack> {
    type Layers = Vec<(u32, usize)>;
    let mut kinds: BTreeMap<(&str, &[u64]), Layers> = BTreeMap::new();
    for &index in members {
        let tensor = resolver.tensor(index);
        if let ((Some(layer), role), [_, _]) = (role(&tensor.name), &tensor.shape[..]) {
            let of_kind = kinds.entry((role, &tensor.shape)).or_default();
            of_kind.push((layer, index));
        }
    }
    let mut stacks = Vec::new();
    for ((_, shape), mut layers) in kinds {
        layers.sort_unstable();
        for neighbours in layers.chunks(size).filter(|n| n.len() > 1) {
            let mut members: Vec<usize> = neighbours.iter().map(|(_, i)| *i).collect();
            members.sort_unstable();
            stacks.push(Stack {
                over: Over::Layers,
                dims: [members.len(), shape[1] as usize, shape[0] as usize],
                members,
            });
        }
    }
    stacks
}

/// The number of heads that a matrix's rows belong to.
fn heads(resolver: &Resolver<'_>, index: usize) -> Result<u64, String> {
    let tensor = resolver.tensor(index);
    let (layer, role) = role(&tensor.name);
    let key = match role {
        "attn_q" => "attention.head_count",
        "attn_k" | "attn_v" => "attention.head_count_kv",
        _ => return Err(format!("the rows of `{role}` are no heads")),
    };
    let key = format!("{}.{key}", resolver.subject.model.architecture);
    let heads = match resolver.subject.model.metadata.get(&key) {
        Some(dwindle_formats::gguf::Value::Array(a)) => a.get_u64(layer.unwrap_or(0) as usize),
        Some(value) => value.as_u64(),
        None => None,
    };
    heads
        .filter(|h| *h > 0 && tensor.shape[1].is_multiple_of(*h))
        .ok_or_else(|| format!("its rows don't divide into the heads of `{key}`"))
}

/// The steps, if they take fewer bytes than the dense tensors do.
fn if_smaller(
    resolver: &Resolver<'_>,
    steps: Vec<Step>,
    members: &[usize],
    wish: &Wish,
) -> Vec<(usize, Resolved)> {
    let parts = || steps.iter().flat_map(|s| &s.stored.parts);
    let bytes: u64 = parts().map(Part::bytes).sum();
    let dense = resolver.dense_bytes(members);
    let largest = parts().max_by_key(|p| p.shape.iter().product::<u64>());
    let note = largest.and_then(|p| resolver.other_type(members[0], wish, p.shape[0], p.ty));
    members
        .iter()
        .zip(steps.clone())
        .map(|(&index, step)| {
            if bytes >= dense {
                let reason = format!("it would take {bytes} bytes, and the dense form {dense}");
                return (index, resolver.unmet(index, &wish.text, reason));
            }
            (index, (step, note.clone().filter(|_| index == members[0])))
        })
        .collect()
}
