//! The smaller model: tensors of what is kept, and metadata that say so.

use std::collections::HashMap;

use dwindle_formats::gguf::{Metadata, TensorType, Value};
use sha2::{Digest as _, Sha256};

use super::StructureError;
use super::blocks::{Block, Blocks};
use super::budget::{Kept, KeptBlock};
use super::fit::{Fits, narrowed};
use crate::architecture::{Assembly, Model, ModelTensor, role};
use crate::checkpoint::Source;
use crate::llama::ggml;
use crate::statistics::Importance;

/// The architecture of llama.cpp in which a model's blocks may differ in width: `deci` for what is
/// shaped as a Llama. `None` where there is none.
pub fn irregular_architecture(model: &Model, blocks: &Blocks) -> Option<&'static str> {
    let llama = ["llama", "deci"].contains(&model.architecture.as_str());
    let alike = |block: &Block| {
        let is_dense = block
            .ffn
            .as_ref()
            .is_some_and(|f| f.experts == 1 && f.rows.len() > 1);
        block.attention.is_some() && is_dense
    };
    // deci's heads are as wide for keys as for values.
    let fits = llama && blocks.key_length == blocks.value_length;
    (fits && blocks.all.iter().all(alike)).then_some("deci")
}

/// That blocks would differ in width where they can't.
pub(super) fn differ(architecture: &str) -> StructureError {
    StructureError::Wish {
        what: "the width of the blocks",
        found: "different from one to another".to_string(),
        expected: format!("the same, as `{architecture}` has no other"),
    }
}

/// Makes the smaller model. Fitted matrices are in F32 if the source's are, else in half precision.
///
/// # Errors
/// [`StructureError::Wish`] where widths would differ and the architecture does not allow it.
pub fn reduce(
    model: &Model,
    source: &dyn Source,
    blocks: &Blocks,
    kept: &Kept,
    fits: &Fits,
) -> Result<Model, StructureError> {
    let mut reduced = model.clone();
    if kept.is_irregular(blocks) {
        let architecture = irregular_architecture(model, blocks);
        reduced.architecture = architecture
            .ok_or_else(|| differ(&model.architecture))?
            .to_string();
        reduced.metadata = renamed(&model.metadata, &model.architecture, &reduced.architecture);
    }
    describe(&mut reduced, model, blocks, kept);

    let mut selections = HashMap::new();
    for (kept, block) in kept.blocks.iter().zip(&blocks.all) {
        if let Some(kept) = kept {
            select(&mut selections, kept, block, blocks);
        }
    }
    let columns: HashMap<usize, usize> = narrowed(kept, blocks)
        .into_iter()
        .map(|n| (n.tensor, n.columns[0].len()))
        .collect();
    reduced.tensors = Vec::new();
    for (index, tensor) in model.tensors.iter().enumerate() {
        let Some(name) = new_name(&tensor.name, kept) else {
            continue;
        };
        let mut made = tensor.clone();
        if let Some(rows) = selections.remove(&index) {
            made = rows_of(tensor, rows);
        }
        if let Some(values) = fits.get(&index) {
            let width = columns.get(&index).map_or(tensor.shape[0], |n| *n as u64);
            made = fitted(tensor, source, width, values)?;
        }
        made.name = name;
        reduced.tensors.push(made);
    }
    Ok(reduced)
}

/// A tensor's name once blocks have left; `None` if its own did.
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

/// Which rows of which tensors stay of a block.
fn select(
    selections: &mut HashMap<usize, Vec<u64>>,
    kept: &KeptBlock,
    block: &Block,
    blocks: &Blocks,
) {
    if let (Some(heads), Some(attention)) = (&kept.heads, &block.attention) {
        let of_heads = |width: usize| -> Vec<u64> {
            let rows = heads.iter().flat_map(|h| h * width..(h + 1) * width);
            rows.map(|r| r as u64).collect()
        };
        let query = blocks.shared_by * blocks.key_length;
        for (tensors, width) in [
            (&attention.q, query),
            (&attention.k, blocks.key_length),
            (&attention.v, blocks.value_length),
        ] {
            for tensor in tensors {
                selections.insert(*tensor, of_heads(width));
            }
        }
    }
    if let Some(ffn) = block.ffn.as_ref().filter(|_| !kept.columns.is_empty()) {
        let rows: Vec<u64> = (0u64..)
            .zip(&kept.columns)
            .flat_map(|(expert, columns)| {
                let first = expert * ffn.width as u64;
                columns.iter().map(move |c| first + *c as u64)
            })
            .collect();
        for tensor in &ffn.rows {
            selections.insert(*tensor, rows.clone());
        }
    }
}

/// Some rows of a tensor, evenly from all slices of a stack.
fn rows_of(tensor: &ModelTensor, rows: Vec<u64>) -> ModelTensor {
    let mut shape = tensor.shape.clone();
    let slices: u64 = shape.iter().skip(2).product();
    let side = if shape.len() == 1 { 0 } else { 1 };
    shape[side] = rows.len() as u64 / slices;
    ModelTensor {
        name: tensor.name.clone(),
        shape,
        assembly: Assembly::Select {
            of: Box::new(tensor.clone()),
            rows,
        },
        always_f32: tensor.always_f32,
    }
}

fn fitted(
    tensor: &ModelTensor,
    source: &dyn Source,
    width: u64,
    values: &[f32],
) -> Result<ModelTensor, StructureError> {
    // Half precision where the source has no more, with as many digits as the range leaves.
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let ty = match tensor.source_type(source) {
        TensorType::F32 => TensorType::F32,
        _ if largest <= half::f16::MAX.to_f32() => TensorType::F16,
        _ => TensorType::BF16,
    };
    let mut shape = tensor.shape.clone();
    shape[0] = width;
    let mut bytes = vec![0; ty.bytes(&shape).unwrap_or(0) as usize];
    ggml::quantize(ty, values, width as usize, None, &mut bytes).map_err(|source| {
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

/// The importance weights of the smaller model.
pub fn importance(whole: &Importance, model: &Model, blocks: &Blocks, kept: &Kept) -> Importance {
    let narrowed = narrowed(kept, blocks);
    whole.of_kept(
        model
            .tensors
            .iter()
            .enumerate()
            .filter_map(|(index, tensor)| {
                let new = new_name(&tensor.name, kept)?;
                let columns = narrowed.iter().find(|n| n.tensor == index);
                let columns = columns.map(|n| (tensor.shape[0] as usize, &n.columns[..]));
                Some((tensor.name.as_str(), new, columns))
            }),
    )
}

/// A digest of what the smaller model has that its source has not.
pub fn digest(reduced: &Model) -> [u8; 32] {
    let mut hash = Sha256::new();
    for tensor in &reduced.tensors {
        match &tensor.assembly {
            Assembly::Made { bytes, .. } => hash.update(bytes),
            Assembly::Select { rows, .. } => {
                rows.iter().for_each(|r| hash.update(r.to_le_bytes()));
            }
            _ => {}
        }
    }
    hash.finalize().into()
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
    let staying: Vec<(&KeptBlock, &Block)> = kept
        .blocks
        .iter()
        .zip(&blocks.all)
        .filter_map(|(kept, block)| Some((kept.as_ref()?, block)))
        .collect();
    let metadata = &mut reduced.metadata;
    metadata.set(key("block_count"), staying.len() as u32);

    let widths: Option<Vec<u32>> = staying
        .iter()
        .map(|(kept, block)| {
            let full = block.ffn.as_ref()?.width;
            Some(kept.columns.first().map_or(full, Vec::len) as u32)
        })
        .collect();
    if let Some(widths) = widths {
        let experts = staying
            .iter()
            .any(|(_, b)| b.ffn.as_ref().is_some_and(|f| f.experts > 1));
        let of_experts = format!("{}.expert_feed_forward_length", model.architecture);
        let name = match experts && model.metadata.get(&of_experts).is_some() {
            true => "expert_feed_forward_length",
            false => "feed_forward_length",
        };
        metadata.set(key(name), one_or_all(&widths));
    }
    let heads: Option<Vec<u32>> = staying
        .iter()
        .map(|(kept, block)| {
            let full = block.attention.as_ref()?.kv_heads;
            Some(kept.heads.as_ref().map_or(full, Vec::len) as u32)
        })
        .collect();
    let listed = matches!(
        metadata.get(&key("attention.head_count")),
        Some(Value::Array(_))
    );
    let has_changed = listed || staying.iter().any(|(kept, _)| kept.heads.is_some());
    if let Some(heads) = heads.filter(|_| has_changed) {
        let queries: Vec<u32> = heads.iter().map(|n| n * blocks.shared_by as u32).collect();
        metadata.set(key("attention.head_count"), one_or_all(&queries));
        metadata.set(key("attention.head_count_kv"), one_or_all(&heads));
        // Otherwise llama.cpp divides the embedding's length by the heads.
        metadata.set(key("attention.key_length"), blocks.key_length as u32);
        metadata.set(key("attention.value_length"), blocks.value_length as u32);
    }
}

fn one_or_all(values: &[u32]) -> Value {
    match values {
        [first, rest @ ..] if rest.iter().all(|v| v == first) => (*first).into(),
        all => all.to_vec().into(),
    }
}
