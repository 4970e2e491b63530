//! Tucker, CP and tensor-train decompositions resolved: what the tensor of three ways is, and what
//! ranks it gets.

use std::collections::BTreeMap;

use dwindle_formats::container::{Form, Over, Part};
use dwindle_formats::gguf::TensorType;
use rayon::prelude::*;

use super::operand::{Operand, TransformError};
use super::resolve::PlanError;
use super::resolver::{Factored, Resolved, Resolver};
use super::rule::{Decomposition, Rank, Ranks};
use super::treatment::{Multilinear, Stack, Step, Treatment};
use dwindle_architecture::{ModelTensor, role};
use dwindle_method::quantize::fitting_type;
use dwindle_method::tensor::Ranks as Wish;
use dwindle_method::tucker::Ways;
use dwindle_method::whitened::{DAMPING, Whitening};
use dwindle_method::{cp, tensor_train, tucker};

impl Resolver<'_> {
    /// One tensor: its heads, its experts, or a plain matrix.
    pub fn multilinear(
        &self,
        index: usize,
        decomposition: &Decomposition,
        over: Option<Over>,
        ranks: &Ranks,
        ty: TensorType,
    ) -> Result<Resolved, PlanError> {
        let shape = &self.tensor(index).shape;
        let name = decomposition.name();
        let dims = match (over, &shape[..]) {
            (None, [_, _]) => return self.plain(index, decomposition, ranks, ty),
            (None | Some(Over::Experts), [n, m, e]) => Ok((Over::Experts, [*e, *m, *n])),
            (Some(Over::Experts), _) => Err("it has no experts".to_string()),
            (Some(Over::Heads), [n, m]) => self.heads(index).map(|h| (Over::Heads, [h, m / h, *n])),
            (Some(Over::Layers), [_, _]) => {
                let (step, note) = self.plain(index, decomposition, ranks, ty)?;
                let alone = "no neighbouring layer is left to stack it with".to_string();
                return Ok((step, note.map(|n| super::Fallback { reason: alone, ..n })));
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
                Ok(self.stack(&stack, decomposition, ranks, ty)?.remove(0).1)
            }
            Err(reason) => Ok(self.unmet(index, name, reason)),
        }
    }

    /// Stacks of the same role over neighbouring layers; a tensor that is left alone is left out.
    pub fn layer_stacks(
        &self,
        members: &[usize],
        decomposition: &Decomposition,
        size: u64,
        ranks: &Ranks,
        ty: TensorType,
    ) -> Result<Vec<(usize, Resolved)>, PlanError> {
        type Layers = Vec<(u32, usize)>;
        let mut kinds: BTreeMap<(&str, &[u64]), Layers> = BTreeMap::new();
        for &index in members {
            let tensor = self.tensor(index);
            if let ((Some(layer), role), [_, _]) = (role(&tensor.name), &tensor.shape[..]) {
                let of_kind = kinds.entry((role, &tensor.shape)).or_default();
                of_kind.push((layer, index));
            }
        }
        let mut stacks = Vec::new();
        for ((_, shape), mut layers) in kinds {
            layers.sort_unstable();
            for neighbours in layers.chunks(size as usize).filter(|n| n.len() > 1) {
                let mut members: Vec<usize> = neighbours.iter().map(|(_, i)| *i).collect();
                members.sort_unstable();
                stacks.push(Stack {
                    over: Over::Layers,
                    dims: [members.len(), shape[1] as usize, shape[0] as usize],
                    members,
                });
            }
        }
        let resolved: Vec<_> = stacks
            .par_iter()
            .map(|stack| self.stack(stack, decomposition, ranks, ty))
            .collect::<Result<_, _>>()?;
        Ok(resolved.into_iter().flatten().collect())
    }

    fn heads(&self, index: usize) -> Result<u64, String> {
        let tensor = self.tensor(index);
        let (layer, role) = role(&tensor.name);
        let key = match role {
            "attn_q" => "attention.head_count",
            "attn_k" | "attn_v" => "attention.head_count_kv",
            _ => return Err(format!("the rows of `{role}` are no heads")),
        };
        let key = format!("{}.{key}", self.subject.model.architecture);
        let heads = match self.subject.model.metadata.get(&key) {
            Some(dwindle_formats::gguf::Value::Array(a)) => a.get_u64(layer.unwrap_or(0) as usize),
            Some(value) => value.as_u64(),
            None => None,
        };
        heads
            .filter(|h| *h > 0 && tensor.shape[1].is_multiple_of(*h))
            .ok_or_else(|| format!("its rows don't divide into the heads of `{key}`"))
    }

    /// A matrix by itself: for Tucker and CP that is svd, for a tensor train an operator.
    fn plain(
        &self,
        index: usize,
        decomposition: &Decomposition,
        ranks: &Ranks,
        ty: TensorType,
    ) -> Result<Resolved, PlanError> {
        if let Decomposition::TensorTrain { modes } = decomposition {
            return self.operator(index, *modes as usize, ranks, ty);
        }
        let rank = match ranks {
            Ranks::Keep(keep) => Rank::Keep(*keep),
            Ranks::Tolerance(t) => Rank::Energy(1.0 - t * t),
            Ranks::Fixed(ranks) => Rank::Fixed(ranks.iter().copied().min().unwrap_or(1)),
        };
        let (step, note) = self.low_rank(index, rank, ty)?;
        let name = decomposition.name();
        let note = note.unwrap_or_else(|| super::Fallback {
            tensor: step.stored.name.clone(),
            wanted: name.to_string(),
            done: "svd".to_string(),
            reason: format!("for a plain matrix {name} is svd"),
        });
        Ok((step, Some(note)))
    }

    fn operator(
        &self,
        index: usize,
        modes: usize,
        ranks: &Ranks,
        wanted: TensorType,
    ) -> Result<Resolved, PlanError> {
        let shape = &self.tensor(index).shape;
        let (n, m) = (shape[0] as usize, shape[1] as usize);
        let (rows, cols) = (
            tensor_train::mode_sizes(m, modes),
            tensor_train::mode_sizes(n, modes),
        );
        let failed = self.transform_failed(index);
        let operand = Operand::slice(&self.subject, self.tensor(index), 0);
        let w = operand.map_err(&failed)?.w;
        let fixed = usizes(ranks);
        let found = tensor_train::decompose_matrix(&w, &rows, &cols, wish(ranks, &fixed))
            .map_err(|e| failed(e.into()))?;
        let limits = vec![usize::MAX; modes - 1];
        let chosen = in_blocks(&found.train.ranks, &limits, ranks, wanted);
        // Blocks may have made a rank larger than its neighbours can use.
        let chosen = tensor_train::usable_ranks(&found.train.dims, chosen);
        let (parts, form) = train_parts(None, &rows, &cols, &chosen, wanted);
        let step = self.factored(
            index,
            Factored {
                method: "tensor-train",
                parameters: BTreeMap::from([("ranks".to_string(), chosen.clone().into())]),
                form,
                parts,
                treatment: Treatment::Operator {
                    rows,
                    cols,
                    ranks: chosen,
                },
            },
        );
        Ok(self
            .if_smaller(vec![step], &[index], "tensor-train", wanted)
            .remove(0)
            .1)
    }

    fn stack(
        &self,
        stack: &Stack,
        decomposition: &Decomposition,
        ranks: &Ranks,
        wanted: TensorType,
    ) -> Result<Vec<(usize, Resolved)>, PlanError> {
        let first = stack.members[0];
        let factors = self
            .ranks(stack, decomposition, ranks, wanted)
            .map_err(self.transform_failed(first))?;
        let [d0, d1, d2] = stack.dims.map(|d| d as u64);
        let over = stack.over;
        let part = |suffix: &str, shape: Vec<u64>| {
            let ty = fitting_type(wanted, shape[0]);
            (suffix.to_string(), ty, shape)
        };
        let (ranks, parts, form): (Vec<usize>, _, _) = match &factors {
            Multilinear::Tucker(ranks) => {
                let [r0, r1, r2] = ranks.map(|r| r as u64);
                let mut parts = vec![part("core", vec![r2, r1, r0])];
                if r2 != d2 {
                    parts.insert(0, part("a", vec![d2, r2]));
                }
                if r1 != d1 {
                    parts.push(part("b", vec![r1, d1]));
                }
                if r0 != d0 {
                    parts.push(part("s", vec![r0, d0]));
                }
                (ranks.to_vec(), parts, Form::Tucker { over, slices: d0 })
            }
            Multilinear::Cp(rank) => {
                let r = *rank as u64;
                let parts = vec![
                    part("a", vec![d2, r]),
                    part("b", vec![r, d1]),
                    part("s", vec![r, d0]),
                ];
                (vec![*rank], parts, Form::Cp { over, slices: d0 })
            }
            Multilinear::TensorTrain(ranks) => {
                let [d0, d1, d2] = stack.dims;
                let (parts, form) =
                    train_parts(Some(over), &[d0, d1, 1], &[1, 1, d2], ranks, wanted);
                (ranks.to_vec(), parts, form)
            }
        };
        let name = decomposition.name();
        let whitened = stack.members.iter().all(|i| self.is_measured(*i));
        let parameters = BTreeMap::from([
            ("ranks".to_string(), ranks.into()),
            ("over".to_string(), over.to_string().into()),
            ("whitened".to_string(), whitened.into()),
        ]);
        let lender = self.tensor(first).name.clone();
        let holder = self.factored(
            first,
            Factored {
                method: name,
                parameters: parameters.clone(),
                form,
                parts,
                treatment: Treatment::Multilinear {
                    factors,
                    stack: stack.clone(),
                },
            },
        );
        let slices = stack.members[1..].iter().enumerate().map(|(k, &index)| {
            self.factored(
                index,
                Factored {
                    method: name,
                    parameters: parameters.clone(),
                    form: Form::Slice {
                        of: lender.clone(),
                        index: k as u64 + 1,
                    },
                    parts: Vec::new(),
                    treatment: Treatment::Slice,
                },
            )
        });
        let steps = std::iter::once(holder).chain(slices).collect();
        Ok(self.if_smaller(steps, &stack.members, name, wanted))
    }

    /// The steps, if they take fewer bytes than the dense tensors do.
    fn if_smaller(
        &self,
        steps: Vec<Step>,
        members: &[usize],
        method: &str,
        wanted: TensorType,
    ) -> Vec<(usize, Resolved)> {
        let wish = format!("{method} with {wanted} factors");
        let parts = || steps.iter().flat_map(|s| &s.stored.parts);
        let bytes: u64 = parts().map(Part::bytes).sum();
        let dense = self.dense_bytes(members);
        let largest = parts().max_by_key(|p| p.shape.iter().product::<u64>());
        let odd = largest.filter(|p| p.ty != wanted);
        let note =
            odd.and_then(|p| self.other_type(members[0], &wish, method, p.shape[0], wanted, p.ty));
        members
            .iter()
            .zip(steps.clone())
            .map(|(&index, step)| {
                if bytes >= dense {
                    let reason = format!("it would take {bytes} bytes, and the dense form {dense}");
                    return (index, self.unmet(index, &wish, reason));
                }
                (index, (step, note.clone().filter(|_| index == members[0])))
            })
            .collect()
    }

    fn ranks(
        &self,
        stack: &Stack,
        decomposition: &Decomposition,
        ranks: &Ranks,
        ty: TensorType,
    ) -> Result<Multilinear, TransformError> {
        let dims = stack.dims;
        let [d0, d1, d2] = dims;
        if let (Decomposition::Cp, Ranks::Keep(keep)) = (decomposition, ranks) {
            let rank = cp::rank_of_keep(dims, *keep).clamp(1, cp::most_ranks(dims));
            let limit = [cp::most_ranks(dims)];
            return Ok(Multilinear::Cp(in_blocks(&[rank], &limit, ranks, ty)[0]));
        }
        let tensors: Vec<&ModelTensor> = stack.members.iter().map(|i| self.tensor(*i)).collect();
        let operand = Operand::stack(&self.subject, &tensors, stack.over)?;
        let whitening = match operand.gram() {
            Some(gram) => Some(Whitening::new(gram, DAMPING)?),
            None => None,
        };
        let (w, whitening) = (&operand.w, whitening.as_ref());
        match decomposition {
            Decomposition::Tucker { all_ways } => {
                let ways = if *all_ways { Ways::Three } else { Ways::Two };
                let wished = match ranks {
                    Ranks::Fixed(r) => match usizes(ranks)[..] {
                        [r0, r1, r2] if *all_ways => Wish::Fixed([r0, r1, r2]),
                        [r1, r2] if !*all_ways => Wish::Fixed([d0, r1, r2]),
                        _ => return Err(wrong_count(r.len(), if *all_ways { 3 } else { 2 })),
                    },
                    Ranks::Keep(keep) => Wish::Keep(*keep),
                    Ranks::Tolerance(t) => Wish::Tolerance(*t),
                };
                let found = tucker::decompose(w, dims, ways, wished, whitening, 0)?.ranks;
                let rounded = in_blocks(&found[1..], &dims[1..], ranks, ty);
                let ranks = [found[0], rounded[0], rounded[1]];
                Ok(Multilinear::Tucker(tucker::usable_ranks(dims, ways, ranks)))
            }
            Decomposition::Cp => {
                let wished = match ranks {
                    Ranks::Fixed(r) if r.len() == 1 => Wish::Fixed(r[0] as usize),
                    Ranks::Fixed(r) => return Err(wrong_count(r.len(), 1)),
                    Ranks::Keep(keep) => Wish::Keep(*keep),
                    Ranks::Tolerance(t) => Wish::Tolerance(*t),
                };
                let rank = match wished {
                    Wish::Fixed(rank) => rank,
                    wished => {
                        let settings = cp::Settings::default();
                        cp::decompose(w, dims, wished, whitening, &settings)?.rank
                    }
                };
                let limit = [cp::most_ranks(dims)];
                Ok(Multilinear::Cp(in_blocks(&[rank], &limit, ranks, ty)[0]))
            }
            Decomposition::TensorTrain { .. } => {
                let fixed = usizes(ranks);
                let found =
                    tensor_train::decompose(w, &dims, wish(ranks, &fixed), whitening)?.ranks;
                let limits = [d0.min(d1 * d2), d2.min(d0 * d1)];
                let rounded = in_blocks(&found, &limits, ranks, ty);
                let usable = tensor_train::usable_ranks(&dims, rounded);
                Ok(Multilinear::TensorTrain([usable[0], usable[1]]))
            }
        }
    }
}

fn wrong_count(found: usize, expected: usize) -> TransformError {
    dwindle_method::error::MethodError::Length { expected, found }.into()
}

fn usizes(ranks: &Ranks) -> Vec<usize> {
    match ranks {
        Ranks::Fixed(ranks) => ranks.iter().map(|r| *r as usize).collect(),
        _ => Vec::new(),
    }
}

fn wish<'a>(ranks: &Ranks, fixed: &'a [usize]) -> Wish<&'a [usize]> {
    match ranks {
        Ranks::Fixed(_) => Wish::Fixed(fixed),
        Ranks::Keep(keep) => Wish::Keep(*keep),
        Ranks::Tolerance(t) => Wish::Tolerance(*t),
    }
}

/// Ranks in whole blocks of the factors' type, where they have that many: fewer where a fraction is
/// to be kept, more where an error is to be met.
fn in_blocks(ranks: &[usize], limits: &[usize], wish: &Ranks, ty: TensorType) -> Vec<usize> {
    let block = ty.block_len() as usize;
    let round = |(rank, limit): (&usize, &usize)| match wish {
        _ if rank >= limit => *limit,
        Ranks::Keep(_) if *rank >= block => rank / block * block,
        Ranks::Keep(_) => *rank,
        _ => rank.next_multiple_of(block).min(*limit),
    };
    ranks.iter().zip(limits).map(round).collect()
}

/// The cores of a tensor train and its form.
fn train_parts(
    over: Option<Over>,
    rows: &[usize],
    cols: &[usize],
    ranks: &[usize],
    wanted: TensorType,
) -> (Vec<(String, TensorType, Vec<u64>)>, Form) {
    let rank = |k: Option<usize>| k.and_then(|k| ranks.get(k)).map_or(1, |r| *r);
    let parts = (0..rows.len())
        .map(|k| {
            let row = (cols[k] * rank(Some(k))) as u64;
            let height = (rank(k.checked_sub(1)) * rows[k]) as u64;
            let ty = fitting_type(wanted, row);
            (format!("core{k}"), ty, vec![row, height])
        })
        .collect();
    let form = Form::TensorTrain {
        over,
        rows: rows.iter().map(|n| *n as u64).collect(),
        cols: cols.iter().map(|n| *n as u64).collect(),
    };
    (parts, form)
}
