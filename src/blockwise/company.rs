//! A block beside one that llama.cpp can't run alone.
//!
//! Where some blocks are of linear attention, llama.cpp's graph fills what blocks of both kinds read, so a model needs
//! one of each. The second is all zeros: it adds nothing to the stream, and nothing of it is computed before the first
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
    /// Whether the block that it stands beside is of linear attention.
    beside_linear: bool,
}

impl<'a> Company<'a> {
    /// What a block needs beside it, if something.
    pub fn of(model: &'a Model, number: u32) -> Option<Company<'a>> {
        if Traits::of(&model.architecture).alone != Alone::Linear {
            return None;
        }
        let beside_linear = is_linear(model, number);
        let blocks = model.tensors.iter().filter_map(|t| role(&t.name).0);
        let like = blocks
            .filter(|n| is_linear(model, *n) != beside_linear)
            .min()?;
        Some(Company {
            model,
            like,
            beside_linear,
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
        let kinds = vec![self.beside_linear, !self.beside_linear];
        metadata.set(key(LAYERS), kinds);
    }
}

const LAYERS: &str = "attention.recurrent_layers";

/// Whether a block is of linear attention: as the metadata says, or all but each one of so many.
fn is_linear(model: &Model, number: u32) -> bool {
    let get = |name: &str| {
        let key = format!("{}.{name}", model.architecture);
        model.metadata.get(&key)
    };
    if let Some(Value::Array(Array::Bool(kinds))) = get(LAYERS) {
        return kinds.get(number as usize) == Some(&true);
    }
    let each = get("full_attention_interval").and_then(Value::as_u64);
    !u64::from(number + 1).is_multiple_of(each.unwrap_or(4))
}
