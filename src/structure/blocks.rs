//! The blocks of a model: which tensors make up the attention and the feed-forward layer of each.

use std::collections::HashMap;
use std::ops::Range;

use super::StructureError;
use crate::architecture::{Model, ModelTensor, role};
use crate::method::gram::Gram;
use crate::plan::Subject;

/// A model's blocks. Tensors are meant by their position in [`Model::tensors`].
#[derive(Debug)]
pub struct Blocks {
    /// One after another.
    pub all: Vec<Block>,
    /// Elements of the residual stream.
    pub embedding: usize,
    /// Query heads that share a key and value head.
    pub shared_by: usize,
    /// Elements of a head's queries and keys.
    pub key_length: usize,
    /// Elements of a head's values.
    pub value_length: usize,
}

/// One block.
#[derive(Debug)]
pub struct Block {
    /// Its attention; `None` where queries, keys and values are not matrices of their own, or their
    /// heads not those of the metadata.
    pub attention: Option<Attention>,
    /// Its feed-forward layer, or its experts; `None` where it has another form.
    pub ffn: Option<FeedForward>,
}

/// Tensors of an attention layer; biases where there are some.
#[derive(Debug)]
pub struct Attention {
    /// Rows of query heads: weight, then bias.
    pub q: Vec<usize>,
    /// Rows of key heads.
    pub k: Vec<usize>,
    /// Rows of value heads.
    pub v: Vec<usize>,
    /// The output projection, whose columns are query heads.
    pub output: usize,
    /// Key and value heads.
    pub kv_heads: usize,
}

/// Tensors of a feed-forward layer or of a stack of experts.
#[derive(Debug)]
pub struct FeedForward {
    /// Tensors whose rows are the layer's columns: up, gate, their biases.
    pub rows: Vec<usize>,
    /// The projection down.
    pub down: usize,
    /// Columns.
    pub width: usize,
    /// Experts, or 1.
    pub experts: usize,
    /// What has a row for each expert: the router, its biases.
    pub router: Vec<usize>,
}

/// A model and the blocks that it is made of.
pub struct Whole<'a> {
    /// The model.
    pub subject: Subject<'a>,
    /// Its blocks.
    pub blocks: Blocks,
}

impl<'a> Whole<'a> {
    /// Finds the blocks of a model.
    ///
    /// # Errors
    /// [`StructureError::Metadata`].
    pub fn of(subject: Subject<'a>) -> Result<Whole<'a>, StructureError> {
        let blocks = Blocks::of(subject.model)?;
        Ok(Whole { subject, blocks })
    }

    pub(super) fn tensor(&self, index: usize) -> &'a ModelTensor {
        &self.subject.model.tensors[index]
    }

    pub(super) fn unknown(
        &self,
        block: usize,
        part: &'static str,
        instead: &'static str,
    ) -> StructureError {
        StructureError::Unknown {
            block,
            architecture: self.subject.model.architecture.clone(),
            part,
            instead,
        }
    }

    /// The Gram matrix of a tensor's input.
    pub(super) fn gram(
        &self,
        tensor: &ModelTensor,
        slice: usize,
    ) -> Result<Gram<'a>, StructureError> {
        let gram = self.subject.measured.gram(&tensor.name, slice)?;
        gram.ok_or_else(|| StructureError::StatisticsMissing {
            tensor: tensor.name.clone(),
        })
    }

    /// The values of a matrix, or of one of a stack.
    pub(super) fn slice(
        &self,
        tensor: &ModelTensor,
        slice: usize,
    ) -> Result<Vec<f32>, StructureError> {
        let rows = tensor.shape[1];
        let first = slice as u64 * rows;
        self.read(tensor, first..first + rows)
    }

    /// All values of a tensor.
    pub(super) fn values(&self, tensor: &ModelTensor) -> Result<Vec<f32>, StructureError> {
        self.read(tensor, 0..tensor.row_count())
    }

    fn read(&self, tensor: &ModelTensor, rows: Range<u64>) -> Result<Vec<f32>, StructureError> {
        self.subject
            .rows(tensor, rows)
            .map_err(|source| StructureError::Read {
                tensor: tensor.name.clone(),
                source,
            })
    }
}

impl Blocks {
    /// Finds them by name and shape.
    ///
    /// # Errors
    /// [`StructureError::Metadata`].
    pub fn of(model: &Model) -> Result<Blocks, StructureError> {
        let number = |suffix: &str| {
            let key = format!("{}.{suffix}", model.architecture);
            let value = model.metadata.get(&key)?;
            let first = match value {
                dwindle_formats::gguf::Value::Array(list) => list.max_u64(),
                one => one.as_u64(),
            };
            first
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| *n > 0)
        };
        let required = |suffix: &str| {
            number(suffix)
                .ok_or_else(|| StructureError::Metadata(format!("{}.{suffix}", model.architecture)))
        };
        let embedding = required("embedding_length")?;
        let heads = required("attention.head_count")?;
        let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
        let key_length = number("attention.key_length").unwrap_or(embedding / heads);
        let value_length = number("attention.value_length").unwrap_or(key_length);
        let mut blocks = Blocks {
            all: Vec::new(),
            embedding,
            shared_by: (heads / kv_heads).max(1),
            key_length,
            value_length,
        };
        let names = Names::of(model);
        blocks.all = (0..required("block_count")? as u32)
            .map(|number| Block {
                attention: names.attention(number, &blocks),
                ffn: names.ffn(number, embedding),
            })
            .collect();
        Ok(blocks)
    }
}

/// Parameters of some blocks, norms included.
pub fn parameters(model: &Model, which: impl Fn(usize) -> bool) -> u64 {
    let wanted = |t: &&ModelTensor| role(&t.name).0.is_some_and(|block| which(block as usize));
    model
        .tensors
        .iter()
        .filter(wanted)
        .map(ModelTensor::elements)
        .sum()
}

struct Names<'a> {
    model: &'a Model,
    by_name: HashMap<&'a str, usize>,
}

impl<'a> Names<'a> {
    fn of(model: &'a Model) -> Names<'a> {
        let tensors = model.tensors.iter().enumerate();
        Names {
            model,
            by_name: tensors.map(|(i, t)| (t.name.as_str(), i)).collect(),
        }
    }

    fn find(&self, block: u32, name: &str) -> Option<usize> {
        self.by_name
            .get(format!("blk.{block}.{name}").as_str())
            .copied()
    }

    /// A weight and its bias, if it has one.
    fn with_bias(&self, block: u32, role: &str) -> Option<Vec<usize>> {
        let weight = self.find(block, &format!("{role}.weight"))?;
        let bias = self.find(block, &format!("{role}.bias"));
        Some([Some(weight), bias].into_iter().flatten().collect())
    }

    fn shape(&self, index: usize) -> &[u64] {
        &self.model.tensors[index].shape
    }

    fn attention(&self, block: u32, dims: &Blocks) -> Option<Attention> {
        let q = self.with_bias(block, "attn_q")?;
        let k = self.with_bias(block, "attn_k")?;
        let v = self.with_bias(block, "attn_v")?;
        let output = self.find(block, "attn_output.weight")?;
        let kv_heads = self.shape(k[0]).get(1).copied()? as usize / dims.key_length;
        let heads = kv_heads * dims.shared_by;
        let is = |tensor: usize, shape: [usize; 2]| *self.shape(tensor) == shape.map(|n| n as u64);
        let fits = is(q[0], [dims.embedding, heads * dims.key_length])
            && is(k[0], [dims.embedding, kv_heads * dims.key_length])
            && is(v[0], [dims.embedding, kv_heads * dims.value_length])
            && is(output, [heads * dims.value_length, dims.embedding]);
        fits.then_some(Attention {
            q,
            k,
            v,
            output,
            kv_heads,
        })
    }

    fn ffn(&self, block: u32, embedding: usize) -> Option<FeedForward> {
        let (stack, experts) = match self.find(block, "ffn_down_exps.weight") {
            Some(down) => ("_exps", self.shape(down).get(2).copied()? as usize),
            None => ("", 1),
        };
        let down = self.find(block, &format!("ffn_down{stack}.weight"))?;
        let mut rows = self.with_bias(block, &format!("ffn_up{stack}"))?;
        rows.extend(
            self.with_bias(block, &format!("ffn_gate{stack}"))
                .unwrap_or_default(),
        );
        let width = self.shape(down)[0];
        // Experts' biases have a row for each expert, and would need another treatment.
        let fits = self.shape(down).get(1) == Some(&(embedding as u64))
            && rows.iter().all(|i| match *self.shape(*i) {
                [n] => n == width && experts == 1,
                [_, n] => n == width && experts == 1,
                [_, n, e] => n == width && e as usize == experts,
                _ => false,
            });
        let of_experts = [
            "ffn_gate_inp.weight",
            "ffn_gate_inp.bias",
            "exp_probs_b.bias",
        ];
        let router = of_experts.iter().filter_map(|name| self.find(block, name));
        fits.then_some(FeedForward {
            rows,
            down,
            width: width as usize,
            experts,
            router: router.collect(),
        })
    }
}
