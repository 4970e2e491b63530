//! One block of a model as a model of its own, which llama.cpp runs on rows of the residual stream.

use dwindle_formats::gguf::{Array, Metadata, TensorLayout, TensorType, Value};

use super::company::Company;
use super::cut::Cut;
use super::embedding::NAME as EMBEDDING;
use super::head::{OUTPUT, OUTPUT_BIAS};
use crate::architecture::{self, Alone, Root, Traits, role};
use crate::llama::error::BoxError;
use crate::llama::feed::TensorFeed;
use crate::llama::model::{LlamaError, Model, ModelOptions};

/// Tokens of the vocabulary that llama.cpp wants to see, where nothing reads them.
const TOKENS: u32 = 32;

/// A window that is longer than any text.
const EVERYTHING: u32 = 1 << 30;

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

    /// What llama.cpp calls the residual stream behind it.
    pub fn behind(&self) -> String {
        format!("{}-0", Traits::of(&self.model.architecture).behind)
    }

    /// Whether it reads the rows of the stream by tokens, from its embedding.
    pub fn by_tokens(&self) -> bool {
        Traits::of(&self.model.architecture).by_tokens
    }

    /// Loads it with its tensors in types of choice, for texts that are cut so.
    ///
    /// # Errors
    /// What `produce` fails with, or llama.cpp's words.
    pub fn load(
        &self,
        cut: &Cut,
        ty: impl Fn(usize) -> TensorType,
        produce: &Produce<'_>,
    ) -> Result<Model, LlamaError> {
        let tensors = &self.model.tensors;
        let own = self.tensors.iter().map(|i| TensorLayout {
            name: self.name_here(&tensors[*i].name),
            shape: tensors[*i].shape.clone(),
            ty: ty(*i),
        });
        let tokens = match self.by_tokens() {
            true => cut.context().batch,
            false => TOKENS,
        };
        let stands_in = self.stand_ins(tokens);
        let (count, zeros) = (stands_in.len(), stands_in.clone());
        let layouts: Vec<TensorLayout> = stands_in.into_iter().chain(own).collect();
        let types: Vec<TensorType> = layouts.iter().map(|l| l.ty).collect();
        let feed = TensorFeed::new(
            &self.metadata(tokens),
            layouts,
            Box::new(|at, out| {
                *out = match at {
                    at if at < count => {
                        vec![0; types[at].bytes(&zeros[at].shape).unwrap_or(0) as usize]
                    }
                    // Positions are added to what the first block reads.
                    at if self.number > 0 && self.is_position(at - count) => {
                        let shape = &self.model.tensors[self.tensors[at - count]].shape;
                        vec![0; types[at].bytes(shape).unwrap_or(0) as usize]
                    }
                    at => produce(self.tensors[at - count], types[at])?,
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
            placement: cut.placement.clone(),
            ..ModelOptions::default()
        };
        Model::load_feed(&name, feed, &options)
    }

    /// What llama.cpp wants to see of the vocabulary, whose values nothing reads.
    fn stand_ins(&self, tokens: u32) -> Vec<TensorLayout> {
        let has = |name: &str| self.model.tensors.iter().any(|t| t.name == name);
        let of = |name: &str, shape: &[u64]| TensorLayout {
            name: name.into(),
            shape: shape.to_vec(),
            ty: TensorType::F32,
        };
        let matrix = [self.width(), tokens.into()];
        let mut all = vec![of(EMBEDDING, &matrix)];
        if has(OUTPUT) {
            all.push(of(OUTPUT, &matrix));
        }
        if has(OUTPUT_BIAS) {
            all.push(of(OUTPUT_BIAS, &[tokens.into()]));
        }
        all.extend(
            Company::of(self.model, self.number)
                .iter()
                .flat_map(Company::tensors),
        );
        all
    }

    /// What the rows of the stream are multiplied by before the graph reads them.
    pub fn scale(&self) -> f32 {
        match Traits::of(&self.model.architecture).root {
            Root::OfRows => 1.0 / (self.width() as f32).sqrt(),
            Root::No | Root::OfTokens => 1.0,
        }
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

    fn metadata(&self, tokens: u32) -> Metadata {
        let architecture = &self.model.architecture;
        let key = |name: &str| format!("{architecture}.{name}");
        let all = &self.model.metadata;
        let count = all.get(&key("block_count")).and_then(Value::as_u64);
        let mut metadata = all.clone();
        metadata.retain(|key| !key.starts_with("tokenizer."));
        for (name, value) in all.iter() {
            if let Value::Array(array) = value
                // Four, whatever the blocks.
                && !name.ends_with(".rope.dimension_sections")
                && metadata.get(name).is_some()
                && let Some(one) = element(array, self.number as usize, count)
            {
                metadata.set(name, one);
            }
        }
        self.stand_alone(&mut metadata, all);
        metadata.set(key("block_count"), 1u32);
        if let Some(company) = Company::of(self.model, self.number) {
            company.describe(&mut metadata);
        }
        metadata.set(key("vocab_size"), tokens);
        metadata.set("tokenizer.ggml.model", "none");
        if self.number > 0 {
            // The stream behind the first block has been scaled.
            metadata.remove(&key("embedding_scale"));
        }
        metadata
    }

    /// Says of the block what the graph else takes from its number.
    fn stand_alone(&self, metadata: &mut Metadata, all: &Metadata) {
        let key = |name: &str| format!("{}.{name}", self.model.architecture);
        let is_each = |count: u32| (self.number + 1).is_multiple_of(count);
        let window = key("attention.sliding_window");
        let pattern = key("attention.sliding_window_pattern");
        let mut turns = true;
        match Traits::of(&self.model.architecture).alone {
            Alone::Windows { each, always, turn } if all.get(&window).is_some() => {
                let said = match all.get(&pattern) {
                    Some(Value::Array(Array::Bool(all))) => all.get(self.number as usize).copied(),
                    _ => None,
                };
                let sees_all = !said.unwrap_or(!is_each(each));
                turns = turn || !sees_all;
                metadata.set(pattern, vec![!sees_all || always]);
                if sees_all && always {
                    metadata.set(window, EVERYTHING);
                } else if sees_all {
                    metadata.remove(&window);
                }
            }
            Alone::Rotations(count) => turns = !is_each(count),
            _ => {}
        }
        if !turns {
            // Positions so near one another that nothing turns.
            metadata.set(key("rope.scaling.type"), "linear");
            metadata.set(key("rope.scaling.factor"), 1e30f32);
        }
        let leading = key("leading_dense_block_count");
        if let Some(count) = all.get(&leading).and_then(Value::as_u64) {
            metadata.set(leading, u32::from(u64::from(self.number) < count));
        }
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
