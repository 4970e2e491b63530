//! Builds the pruned model: the kept tensors and the matching metadata.

use std::collections::HashMap;

use dwindle_formats::gguf::{Metadata, TensorType, Value};

use super::blocks::{Block, Blocks, Whole};
use super::fit::{Fits, Inputs, narrowed};
use super::kept::{Kept, KeptBlock};
use super::{StructureError, form, rotary};
use crate::architecture::{Assembly, Model, ModelTensor, role};
use crate::checkpoint::Source;
use crate::ggml;
use crate::plan::Subject;
use crate::statistics::{Importance, Part};

/// Makes the smaller model. Fitted matrices are in F32 if the source's are, else in half precision.
///
/// # Errors
/// [`StructureError::Target`] where widths would differ and the architecture does not allow it.
pub fn reduce(whole: &Whole<'_>, kept: &Kept, fits: &Fits) -> Result<Model, StructureError> {
    let Subject { model, source, .. } = whole.subject;
    let blocks = &whole.blocks;
    let architecture = form::architecture(kept, model, blocks)?;
    let mut reduced = model.clone();
    if architecture != model.architecture {
        reduced.metadata = renamed(&model.metadata, &model.architecture, architecture);
        reduced.architecture = architecture.to_string();
    }
    describe(&mut reduced, model, blocks, kept);

    let order = form::head_order(kept, blocks, [&model.architecture, architecture]);
    let mut selections = HashMap::new();
    for (kept, block) in kept.blocks.iter().zip(&blocks.all) {
        if let Some(kept) = kept {
            select_heads(&mut selections, kept, block, blocks, order.as_deref());
            select_columns(&mut selections, kept, block);
            select_experts(&mut selections, kept, block, model);
        }
    }
    let widths: HashMap<usize, usize> = narrowed(kept, blocks)
        .into_iter()
        .map(|n| (n.tensor, n.inputs.width()))
        .collect();
    reduced.tensors = Vec::new();
    for (index, tensor) in model.tensors.iter().enumerate() {
        let Some(name) = new_name(&tensor.name, kept) else {
            continue;
        };
        let mut made = tensor.clone();
        if let Some(selection) = selections.remove(&index) {
            made = selection.of(tensor);
        }
        if let Some(values) = fits.get(&index) {
            let width = widths.get(&index).map(|n| *n as u64);
            made = fitted(tensor, source, width, values)?;
        }
        made.name = name;
        reduced.tensors.push(made);
    }
    if let Some(pairs) = &kept.pairs {
        let factors = rotary::factors(whole, pairs)?;
        let is_factors = |t: &ModelTensor| t.name == factors.name;
        reduced.tensors.retain(|t| !is_factors(t));
        reduced.tensors.push(factors);
    }
    if needs_output(&reduced) {
        let is_embedding = |t: &&ModelTensor| t.name == "token_embd.weight";
        let embedding = reduced.tensors.iter().find(is_embedding);
        reduced.tensors.extend(embedding.cloned().map(|mut copy| {
            copy.name = "output.weight".to_string();
            copy
        }));
    }
    Ok(reduced)
}

/// Whether llama.cpp needs a separate output where the model shares it with its embedding.
fn needs_output(model: &Model) -> bool {
    let is_output = |t: &ModelTensor| t.name == "output.weight";
    model.architecture == form::UNEVEN && !model.tensors.iter().any(is_output)
}

/// A tensor's name after blocks were removed; `None` if its own was.
fn new_name(name: &str, kept: &Kept) -> Option<String> {
    let (Some(block), _) = role(name) else {
        return Some(name.to_string());
    };
    let block = block as usize;
    kept.blocks.get(block)?.as_ref()?;
    let number = kept.blocks[..block].iter().flatten().count();
    let rest = name.splitn(3, '.').nth(2)?;
    Some(format!("blk.{number}.{rest}"))
}

/// The kept rows of a tensor.
struct Selection {
    rows: Vec<u64>,
    /// Slices of a stack that they are of.
    slices: Option<usize>,
}

impl Selection {
    fn of(self, tensor: &ModelTensor) -> ModelTensor {
        let mut shape = tensor.shape.clone();
        if let (Some(slices), Some(stacked)) = (self.slices, shape.get_mut(2)) {
            *stacked = slices as u64;
        }
        let slices: u64 = shape.iter().skip(2).product();
        let side = if shape.len() == 1 { 0 } else { 1 };
        shape[side] = self.rows.len() as u64 / slices;
        ModelTensor {
            name: tensor.name.clone(),
            shape,
            assembly: Assembly::Select {
                of: Box::new(tensor.clone()),
                rows: self.rows,
            },
            always_f32: tensor.always_f32,
        }
    }
}

/// The rows of kept heads, the elements of queries and keys in an order of their own.
fn select_heads(
    selections: &mut HashMap<usize, Selection>,
    kept: &KeptBlock,
    block: &Block,
    blocks: &Blocks,
    order: Option<&[usize]>,
) {
    let Some(attention) = &block.attention else {
        return;
    };
    if kept.heads.is_none() && order.is_none() {
        return;
    }
    let heads = kept.heads_of(attention);
    let whole: Vec<usize> = (0..blocks.key_length).collect();
    let key = order.unwrap_or(&whole);
    let value: Vec<usize> = (0..blocks.value_length).collect();
    for (tensors, elements, length, group) in [
        (&attention.q, key, blocks.key_length, blocks.shared_by),
        (&attention.k, key, blocks.key_length, 1),
        (&attention.v, &value[..], blocks.value_length, 1),
    ] {
        let heads = heads.iter().flat_map(|h| h * group..(h + 1) * group);
        let rows: Vec<u64> = heads
            .flat_map(|head| elements.iter().map(move |e| (head * length + e) as u64))
            .collect();
        for tensor in tensors {
            let rows = rows.clone();
            selections.insert(*tensor, Selection { rows, slices: None });
        }
    }
}

/// The rows of a feed-forward layer's kept columns.
fn select_columns(selections: &mut HashMap<usize, Selection>, kept: &KeptBlock, block: &Block) {
    let Some(ffn) = block.ffn.as_ref().filter(|_| !kept.columns.is_empty()) else {
        return;
    };
    let rows: Vec<u64> = (0u64..)
        .zip(&kept.columns)
        .flat_map(|(expert, columns)| {
            let first = expert * ffn.width as u64;
            columns.iter().map(move |c| first + *c as u64)
        })
        .collect();
    for tensor in &ffn.rows {
        let rows = rows.clone();
        selections.insert(*tensor, Selection { rows, slices: None });
    }
}

/// The slices of kept experts, and their rows of the router.
fn select_experts(
    selections: &mut HashMap<usize, Selection>,
    kept: &KeptBlock,
    block: &Block,
    model: &Model,
) {
    let (Some(experts), Some(ffn)) = (&kept.experts, &block.ffn) else {
        return;
    };
    for tensor in ffn.rows.iter().chain([&ffn.down]) {
        let rows = model.tensors[*tensor].shape[1];
        let of = |e: &usize| *e as u64 * rows..(*e as u64 + 1) * rows;
        let selection = Selection {
            rows: experts.iter().flat_map(of).collect(),
            slices: Some(experts.len()),
        };
        selections.insert(*tensor, selection);
    }
    for tensor in &ffn.router {
        let selection = Selection {
            rows: experts.iter().map(|e| *e as u64).collect(),
            slices: None,
        };
        selections.insert(*tensor, selection);
    }
}

fn fitted(
    tensor: &ModelTensor,
    source: &dyn Source,
    width: Option<u64>,
    values: &[f32],
) -> Result<ModelTensor, StructureError> {
    // Half precision where the source has no more, with as many digits as the range allows.
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let ty = match tensor.source_type(source) {
        TensorType::F32 => TensorType::F32,
        _ if largest <= half::f16::MAX.to_f32() => TensorType::F16,
        _ => TensorType::BF16,
    };
    let mut shape = tensor.shape.clone();
    match &mut shape[..] {
        [elements] => *elements = values.len() as u64,
        [columns, rows, stacked @ ..] => {
            *columns = width.unwrap_or(*columns);
            *rows = values.len() as u64 / (*columns * stacked.iter().product::<u64>());
        }
        [] => {}
    }
    let bytes = ggml::quantized(ty, values, shape[0] as usize, None).map_err(|source| {
        StructureError::Read {
            tensor: tensor.name.clone(),
            source,
        }
    })?;
    Ok(ModelTensor {
        name: tensor.name.clone(),
        shape,
        assembly: Assembly::Made { ty, bytes },
        always_f32: tensor.always_f32,
    })
}

/// The importance weights of the smaller model, where the whole has some.
pub fn importance(whole: &Whole<'_>, kept: &Kept) -> Option<Importance> {
    let narrowed = narrowed(kept, &whole.blocks);
    let all = whole.subject.measured.importance?;
    Some(
        all.of_kept(whole.subject.model.tensors.iter().enumerate().filter_map(
            |(index, tensor)| {
                let new = new_name(&tensor.name, kept)?;
                let inputs = narrowed.iter().find(|n| n.tensor == index);
                let part = match inputs.map(|n| &n.inputs) {
                    Some(Inputs::Columns(lists)) => Part::Columns(lists),
                    // Whitened: no input matters more than another.
                    Some(Inputs::Values(_)) => return None,
                    None => match kept_experts(kept, tensor) {
                        Some(experts) => Part::Slices(experts),
                        None => Part::All,
                    },
                };
                Some((tensor.name.as_str(), tensor.shape[0] as usize, new, part))
            },
        )),
    )
}

/// The kept experts of a stack.
fn kept_experts<'a>(kept: &'a Kept, tensor: &ModelTensor) -> Option<&'a [usize]> {
    let block = role(&tensor.name).0? as usize;
    let experts = kept.blocks.get(block)?.as_ref()?.experts.as_ref()?;
    (tensor.shape.len() == 3).then_some(experts)
}

fn renamed(metadata: &Metadata, from: &str, to: &str) -> Metadata {
    let mut out = Metadata::new();
    for (key, value) in metadata.iter() {
        match key
            .strip_prefix(from)
            .and_then(|rest| rest.strip_prefix('.'))
        {
            Some(rest) => out.set(format!("{to}.{rest}"), value.clone()),
            None => out.set(key, value.clone()),
        }
    }
    out.set("general.architecture", to);
    out
}

/// Writes widths and counts, one for each block where they differ.
fn describe(reduced: &mut Model, model: &Model, blocks: &Blocks, kept: &Kept) {
    let architecture = reduced.architecture.clone();
    let key = |name: &str| format!("{architecture}.{name}");
    let staying: Staying<'_> = kept
        .blocks
        .iter()
        .zip(&blocks.all)
        .filter_map(|(kept, block)| Some((kept.as_ref()?, block)))
        .collect();
    let metadata = &mut reduced.metadata;
    metadata.set(key("block_count"), staying.len() as u32);
    describe_widths(metadata, &key, model, &staying);
    describe_heads(metadata, &key, blocks, kept, &staying);
    if architecture == form::UNEVEN {
        form::describe_uneven(metadata, staying.len());
    }
    if let Some(experts) = staying.first().and_then(|(kept, _)| kept.experts.as_ref()) {
        let count = experts.len() as u32;
        metadata.set(key("expert_count"), count);
        let used = metadata.get(&key("expert_used_count"));
        if let Some(used) = used.and_then(Value::as_u64) {
            let used = used.min(count.into()) as u32;
            metadata.set(key("expert_used_count"), used);
        }
    }
}

/// The kept blocks, with what is kept of each.
type Staying<'a> = Vec<(&'a KeptBlock, &'a Block)>;

fn describe_widths(
    metadata: &mut Metadata,
    key: &dyn Fn(&str) -> String,
    model: &Model,
    staying: &Staying<'_>,
) {
    let width = |(kept, block): &(&KeptBlock, &Block)| {
        let full = block.ffn.as_ref()?.width;
        Some(kept.columns.first().map_or(full, Vec::len) as u32)
    };
    let Some(widths) = staying.iter().map(width).collect::<Option<Vec<u32>>>() else {
        return;
    };
    let is_stack = |b: &Block| b.ffn.as_ref().is_some_and(|f| f.experts > 1);
    let experts = staying.iter().any(|(_, b)| is_stack(b));
    let of_experts = format!("{}.expert_feed_forward_length", model.architecture);
    let name = if experts && model.metadata.get(&of_experts).is_some() {
        "expert_feed_forward_length"
    } else {
        "feed_forward_length"
    };
    metadata.set(key(name), one_or_all(&widths));
}

fn describe_heads(
    metadata: &mut Metadata,
    key: &dyn Fn(&str) -> String,
    blocks: &Blocks,
    kept: &Kept,
    staying: &Staying<'_>,
) {
    let key_length = kept.key_length(blocks);
    let count = |(kept, block): &(&KeptBlock, &Block)| {
        let full = block.attention.as_ref()?.kv_heads;
        Some(kept.heads.as_ref().map_or(full, Vec::len) as u32)
    };
    let heads: Option<Vec<u32>> = staying.iter().map(count).collect();
    let own = metadata.get(&key("attention.head_count"));
    let has_changed = matches!(own, Some(Value::Array(_)))
        || [key_length, kept.value_length] != [blocks.key_length, blocks.value_length]
        || staying.iter().any(|(kept, _)| kept.heads.is_some());
    if let Some(heads) = heads.filter(|_| has_changed) {
        let queries: Vec<u32> = heads.iter().map(|n| n * blocks.shared_by as u32).collect();
        metadata.set(key("attention.head_count"), one_or_all(&queries));
        metadata.set(key("attention.head_count_kv"), one_or_all(&heads));
        // Otherwise llama.cpp divides the embedding's length by the heads.
        metadata.set(key("attention.key_length"), key_length as u32);
        metadata.set(key("attention.value_length"), kept.value_length as u32);
    }
    if kept.pairs.is_some() {
        metadata.set(key("rope.dimension_count"), key_length as u32);
    }
}

fn one_or_all(values: &[u32]) -> Value {
    match values {
        [first, rest @ ..] if rest.iter().all(|v| v == first) => (*first).into(),
        all => all.to_vec().into(),
    }
}
