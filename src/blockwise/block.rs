//! One block of a model as a model of its own, which llama.cpp runs on rows of the residual stream.

use dwindle_formats::gguf::{Array, Metadata, TensorLayout, TensorType, Value};

use crate::architecture::{self, role};
use crate::llama::error::BoxError;
use crate::llama::feed::TensorFeed;
use crate::llama::model::{LlamaError, Model, ModelOptions};
use crate::llama::placement::Placement;

/// Tokens of the vocabulary that llama.cpp wants to see; nothing reads them.
const TOKENS: u32 = 32;

/// What llama.cpp calls the residual stream behind the block.
pub const BEHIND: &str = "l_out-0";

/// Makes the bytes of a tensor in a type.
pub type Produce<'a> = dyn Fn(usize, TensorType) -> Result<Vec<u8>, BoxError> + Sync + 'a;

/// One block of a model.
pub struct Block<'a> {
    model: &'a architecture::Model,
    number: u32,
    /// Positions of its tensors in the model, and of those that all blocks share.
    tensors: Vec<usize>,
}

impl<'a> Block<'a> {
    /// The block of a number.
    pub fn new(model: &'a architecture::Model, number: u32) -> Block<'a> {
        let is_part = |name: &str| match role(name) {
            (Some(block), _) => block == number,
            (None, role) => role != "token_embd" && role != "output",
        };
        let tensors = model.tensors.iter().enumerate();
        Block {
            model,
            number,
            tensors: tensors
                .filter(|(_, t)| is_part(&t.name))
                .map(|(i, _)| i)
                .collect(),
        }
    }

    /// Positions of its tensors in the model.
    pub fn tensors(&self) -> &[usize] {
        &self.tensors
    }

    /// The name that a tensor of the model has in the block's.
    pub fn name_here(&self, name: &str) -> String {
        match name.strip_prefix(&format!("blk.{}.", self.number)) {
            Some(rest) => format!("blk.0.{rest}"),
            None => name.to_string(),
        }
    }

    /// The name that a tensor of the block's has in the model.
    pub fn name_there(&self, name: &str) -> String {
        match name.strip_prefix("blk.0.") {
            Some(rest) => format!("blk.{}.{rest}", self.number),
            None => name.to_string(),
        }
    }

    /// Loads it to devices with its tensors in types of choice.
    ///
    /// # Errors
    /// What `produce` fails with, or llama.cpp's words.
    pub fn load(
        &self,
        placement: &Placement,
        ty: impl Fn(usize) -> TensorType,
        produce: &Produce<'_>,
    ) -> Result<Model, LlamaError> {
        let tensors = &self.model.tensors;
        let own = self.tensors.iter().map(|i| TensorLayout {
            name: self.name_here(&tensors[*i].name),
            shape: tensors[*i].shape.clone(),
            ty: ty(*i),
        });
        let width = self.width();
        let embedding = TensorLayout {
            name: "token_embd.weight".into(),
            shape: vec![width, TOKENS.into()],
            ty: TensorType::F32,
        };
        let layouts: Vec<TensorLayout> = std::iter::once(embedding).chain(own).collect();
        let types: Vec<TensorType> = layouts.iter().map(|l| l.ty).collect();
        let feed = TensorFeed::new(
            &self.metadata(),
            layouts,
            Box::new(|at, out| {
                *out = match at {
                    0 => vec![0; (4 * width * u64::from(TOKENS)) as usize],
                    // Positions are added to what the first block reads.
                    at if self.number > 0 && self.is_position(at - 1) => {
                        let shape = &self.model.tensors[self.tensors[at - 1]].shape;
                        vec![0; types[at].bytes(shape).unwrap_or(0) as usize]
                    }
                    at => produce(self.tensors[at - 1], types[at])?,
                };
                Ok(())
            }),
        );
        let name = format!("block {}", self.number);
        let feed = feed.map_err(|source| LlamaError::Feed {
            name: name.clone(),
            source,
        })?;
        let options = ModelOptions {
            placement: placement.clone(),
            ..ModelOptions::default()
        };
        Model::load_feed(&name, feed, &options)
    }

    fn is_position(&self, at: usize) -> bool {
        self.model.tensors[self.tensors[at]].name == "position_embd.weight"
    }

    /// Elements of a row of the residual stream.
    pub fn width(&self) -> u64 {
        let key = format!("{}.embedding_length", self.model.architecture);
        let width = self.model.metadata.get(&key).and_then(Value::as_u64);
        width.unwrap_or(0)
    }

    fn metadata(&self) -> Metadata {
        let architecture = &self.model.architecture;
        let key = |name: &str| format!("{architecture}.{name}");
        let all = &self.model.metadata;
        let count = all.get(&key("block_count")).and_then(Value::as_u64);
        let mut metadata = all.clone();
        metadata.retain(|key| !key.starts_with("tokenizer."));
        for (name, value) in all.iter() {
            if let Value::Array(array) = value
                && metadata.get(name).is_some()
                && let Some(one) = element(array, self.number as usize, count)
            {
                metadata.set(name, one);
            }
        }
        metadata.set(key("block_count"), 1u32);
        metadata.set(key("vocab_size"), TOKENS);
        metadata.set("tokenizer.ggml.model", "none");
        if self.number > 0 {
            // The stream behind the first block has been scaled.
            metadata.remove(&key("embedding_scale"));
        }
        metadata
    }
}

/// The element of an array that has one for each block.
fn element(array: &Array, at: usize, blocks: Option<u64>) -> Option<Value> {
    macro_rules! pick {
        ($($variant:ident),*) => {
            match array {
                $(Array::$variant(v) if Some(v.len() as u64) == blocks => {
                    v.get(at).map(|v| Value::from(vec![v.clone()]))
                })*
                _ => None,
            }
        };
    }
    pick!(U8, I8, U16, I16, U32, I32, F32, Bool, String, U64, I64, F64)
}
