//! A block beside one that llama.cpp can't run alone.
//!
//! Where some blocks are of linear attention, convolutions or state spaces, llama.cpp's graph fills what blocks of both kinds read, so
//! a model needs one of each. The second is all zeros: it adds nothing to the stream, and nothing of it is computed before the first
//! has been seen.

use dwindle_formats::gguf::{Array, Metadata, TensorLayout, TensorType, Value};

use crate::architecture::{Alone, Model, Traits, role};

/// What begins the names of its tensors.
pub const NAMES: &str = "blk.1.";

/// A block of the other kind.
pub struct Company<'a> {
    model: &'a Model,
    /// The block that it has the shapes of.
    like: u32,
    /// The block that it stands beside.
    beside: u32,
}

impl<'a> Company<'a> {
    /// What a block needs beside it, if something.
    pub fn of(model: &'a Model, number: u32) -> Option<Company<'a>> {
        let attends = attends(model, number)?;
        let blocks = model.tensors.iter().filter_map(|t| role(&t.name).0);
        let others = blocks.filter(|n| self::attends(model, *n) != Some(attends));
        Some(Company {
            model,
            like: others.min()?,
            beside: number,
        })
    }

    /// Its tensors.
    pub fn tensors(&self) -> Vec<TensorLayout> {
        let start = format!("blk.{}.", self.like);
        let layout = |t: &crate::architecture::ModelTensor| {
            let rest = t.name.strip_prefix(&start)?;
            let fits = |ty: TensorType| t.row_len().is_multiple_of(ty.block_len());
            let ty = match t.is_weight() {
                true if fits(TensorType::IQ1_S) => TensorType::IQ1_S,
                true if fits(TensorType::Q4_0) => TensorType::Q4_0,
                true => TensorType::F16,
                false => TensorType::F32,
            };
            Some(TensorLayout {
                name: format!("{NAMES}{rest}"),
                shape: t.shape.clone(),
                ty,
            })
        };
        self.model.tensors.iter().filter_map(layout).collect()
    }

    /// Says that there are two blocks.
    pub fn describe(&self, metadata: &mut Metadata) {
        let key = |name: &str| format!("{}.{name}", self.model.architecture);
        metadata.set(key("block_count"), 2u32);
        let heads = |block: u32| keys(self.model)?.get(block as usize).copied();
        match (heads(self.beside), heads(self.like)) {
            (Some(own), Some(other)) => metadata.set(key(HEADS), vec![own, other]),
            _ => {
                let is_linear = attends(self.model, self.beside) == Some(false);
                metadata.set(key(LAYERS), vec![is_linear, !is_linear]);
            }
        }
    }
}

const LAYERS: &str = "attention.recurrent_layers";
const HEADS: &str = "attention.head_count_kv";

/// Whether a block attends to all that was before, where some don't.
fn attends(model: &Model, number: u32) -> Option<bool> {
    match Traits::of(&model.architecture).alone {
        Alone::Linear => Some(!is_linear(model, number)),
        Alone::Keyless => keys(model)?.get(number as usize).map(|heads| *heads > 0),
        _ => None,
    }
}

fn get<'a>(model: &'a Model, name: &str) -> Option<&'a Value> {
    model
        .metadata
        .get(&format!("{}.{name}", model.architecture))
}

/// Heads of keys of each block.
fn keys(model: &Model) -> Option<Vec<i32>> {
    match get(model, HEADS)? {
        Value::Array(Array::I32(heads)) => Some(heads.clone()),
        Value::Array(Array::U32(heads)) => Some(heads.iter().map(|n| *n as i32).collect()),
        _ => None,
    }
}

/// Whether a block is of linear attention: as the metadata says, or all but each one of so many.
fn is_linear(model: &Model, number: u32) -> bool {
    if let Some(Value::Array(Array::Bool(kinds))) = get(model, LAYERS) {
        return kinds.get(number as usize) == Some(&true);
    }
    let each = get(model, "full_attention_interval").and_then(Value::as_u64);
    !u64::from(number + 1).is_multiple_of(each.unwrap_or(4))
}
