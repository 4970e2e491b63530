//! Blocks beside one that llama.cpp can't run alone.
//!
//! Where some blocks are of linear attention, convolutions or state spaces, llama.cpp's graph fills what blocks of both kinds read, so
//! a model needs one of each. Those behind the first are all zeros: they add nothing to the stream, and nothing of them is computed
//! before the first has been seen.

use dwindle_formats::gguf::{Array, Metadata, TensorLayout, TensorType, Value};

use crate::architecture::{Alone, Model, Traits, role};

/// Whether a tensor is of such a block.
pub fn is_of(name: &str) -> bool {
    name.starts_with("blk.") && !name.starts_with("blk.0.")
}

/// What a block is, of models whose blocks are not all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Attending,
    /// Linear attention, a convolution or a state space.
    Recurrent,
    /// A feed-forward layer alone.
    Feeding,
}

/// Blocks of the other kinds.
pub struct Company<'a> {
    model: &'a Model,
    /// The blocks that they have the shapes of.
    like: Vec<u32>,
    /// The block that they stand beside.
    beside: u32,
}

impl<'a> Company<'a> {
    /// What a block needs beside it, if something.
    pub fn of(model: &'a Model, number: u32) -> Option<Company<'a>> {
        let own = kind(model, number)?;
        let like = [Kind::Attending, Kind::Recurrent]
            .into_iter()
            .filter(|other| *other != own)
            .filter_map(|other| {
                let blocks = model.tensors.iter().filter_map(|t| role(&t.name).0);
                blocks.filter(|n| kind(model, *n) == Some(other)).min()
            });
        let like: Vec<u32> = like.collect();
        (!like.is_empty()).then_some(Company {
            model,
            like,
            beside: number,
        })
    }

    /// Their tensors.
    pub fn tensors(&self) -> Vec<TensorLayout> {
        let all = (1..).zip(&self.like);
        all.flat_map(|(number, like)| self.like(number, *like))
            .collect()
    }

    /// The tensors of one, which has the shapes of another.
    fn like(&self, number: u32, like: u32) -> Vec<TensorLayout> {
        let start = format!("blk.{like}.");
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
                name: format!("blk.{number}.{rest}"),
                shape: t.shape.clone(),
                ty,
            })
        };
        self.model.tensors.iter().filter_map(layout).collect()
    }

    /// Says how many blocks there are, and of what kinds.
    pub fn describe(&self, metadata: &mut Metadata) {
        let key = |name: &str| format!("{}.{name}", self.model.architecture);
        let blocks: Vec<u32> = [self.beside].into_iter().chain(self.like.clone()).collect();
        metadata.set(key("block_count"), blocks.len() as u32);
        for name in [HEADS, WIDTHS] {
            if let Some(numbers) = numbers(self.model, name) {
                let of = |block: &u32| numbers.get(*block as usize).copied().unwrap_or(0);
                metadata.set(key(name), blocks.iter().map(of).collect::<Vec<i32>>());
            }
        }
        if numbers(self.model, HEADS).is_none() {
            let is_linear = |block: &u32| is_linear(self.model, *block);
            metadata.set(
                key(LAYERS),
                blocks.iter().map(is_linear).collect::<Vec<_>>(),
            );
        }
    }
}

const LAYERS: &str = "attention.recurrent_layers";
const HEADS: &str = "attention.head_count_kv";
const WIDTHS: &str = "feed_forward_length";

/// What a block is, where not all are the same.
fn kind(model: &Model, number: u32) -> Option<Kind> {
    let of = |name| Some(*numbers(model, name)?.get(number as usize)?);
    match Traits::of(&model.architecture).alone {
        Alone::Linear if is_linear(model, number) => Some(Kind::Recurrent),
        Alone::Linear => Some(Kind::Attending),
        Alone::Keyless => Some(match (of(HEADS)?, of(WIDTHS)) {
            (0, Some(0) | None) => Kind::Recurrent,
            (0, Some(_)) => Kind::Feeding,
            _ => Kind::Attending,
        }),
        _ => None,
    }
}

fn get<'a>(model: &'a Model, name: &str) -> Option<&'a Value> {
    model
        .metadata
        .get(&format!("{}.{name}", model.architecture))
}

/// A number of each block, where not all have the same.
fn numbers(model: &Model, name: &str) -> Option<Vec<i32>> {
    match get(model, name)? {
        Value::Array(Array::I32(numbers)) => Some(numbers.clone()),
        Value::Array(Array::U32(numbers)) => Some(numbers.iter().map(|n| *n as i32).collect()),
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
