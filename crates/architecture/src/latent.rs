//! Attention whose keys and values come out of a latent vector (multi-head latent attention).
//!
//! DeepSeek-AI, "DeepSeek-V2", arXiv 2405.04434. llama.cpp computes it on the latent vector itself, so that there is one
//! head of keys and values.

use dwindle_formats::gguf::Metadata;

use super::config::Config;
use super::{Assembly, Error, ModelTensor};
use dwindle_checkpoint::SourceTensor;

/// A dimension of such attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LatentDim {
    Heads,
    /// The latent vector of queries.
    QueryRank,
    /// Heads times their dimension in queries.
    Query,
    /// The latent vector of keys and values.
    Rank,
    /// The same, and what turns of a key, which heads share.
    RankAndRotary,
    /// What does not turn of a head of keys.
    Still,
    /// A head of values.
    Value,
    /// Heads times their dimension in values.
    Values,
}

/// A part of the matrix that makes keys and values, which lie head by head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LatentForm {
    /// Keys of each head, transposed.
    Keys,
    /// Values of each head.
    Values,
}

/// Attention through a latent vector.
#[derive(Debug)]
pub(super) struct Latent {
    heads: u64,
    query_rank: u64,
    rank: u64,
    still: u64,
    rotary: u64,
    value: u64,
}

impl Latent {
    /// What a configuration says, if it says something.
    pub(super) fn of(config: &Config) -> Result<Option<Latent>, Error> {
        if config.count(&["kv_lora_rank"])?.is_none() {
            return Ok(None);
        }
        let need = |key| Ok::<_, Error>(u64::from(config.need(&[key])?));
        Ok(Some(Latent {
            heads: need("num_attention_heads")?,
            query_rank: config.count(&["q_lora_rank"])?.unwrap_or(0).into(),
            rank: need("kv_lora_rank")?,
            still: need("qk_nope_head_dim")?,
            rotary: need("qk_rope_head_dim")?,
            value: need("v_head_dim")?,
        }))
    }

    pub(super) fn value(&self, dim: LatentDim) -> u64 {
        match dim {
            LatentDim::Heads => self.heads,
            LatentDim::QueryRank => self.query_rank,
            LatentDim::Query => self.heads.saturating_mul(self.still + self.rotary),
            LatentDim::Rank => self.rank,
            LatentDim::RankAndRotary => self.rank + self.rotary,
            LatentDim::Still => self.still,
            LatentDim::Value => self.value,
            LatentDim::Values => self.heads * self.value,
        }
    }

    /// The shape of the matrix that makes keys and values, slowest dimension first.
    pub(super) fn source_shape(&self) -> Vec<u64> {
        vec![
            self.heads.saturating_mul(self.still + self.value),
            self.rank,
        ]
    }

    /// How a part of that matrix comes out of it. `shape` is the matrix's, and becomes the part's, row length first.
    pub(super) fn formed(
        &self,
        form: LatentForm,
        tensor: usize,
        source: &SourceTensor,
        shape: &mut Vec<u64>,
    ) -> Assembly {
        let of = |shape: &[u64], assembly| {
            Box::new(ModelTensor {
                name: source.name.clone(),
                shape: shape.to_vec(),
                assembly,
                always_f32: false,
            })
        };
        let (first, count) = match form {
            LatentForm::Keys => (0, self.still),
            LatentForm::Values => (self.still, self.value),
        };
        let start = |head: u64| head * (self.still + self.value) + first;
        let rows = (0..self.heads).flat_map(|head| start(head)..start(head) + count);
        let part = Assembly::Select {
            of: of(shape, Assembly::Copy(tensor)),
            rows: rows.collect(),
        };
        *shape = vec![self.rank, count, self.heads];
        match form {
            LatentForm::Values => part,
            LatentForm::Keys => {
                let part = of(shape, part);
                *shape = vec![count, self.rank, self.heads];
                Assembly::Transpose(part)
            }
        }
    }

    /// Writes it as metadata.
    pub(super) fn describe(&self, architecture: &str, metadata: &mut Metadata) {
        let mut set = |name: &str, value: u64| {
            metadata.set(format!("{architecture}.{name}"), value as u32);
        };
        set("attention.head_count_kv", 1);
        if self.query_rank > 0 {
            set("attention.q_lora_rank", self.query_rank);
        }
        set("attention.kv_lora_rank", self.rank);
        set("attention.key_length", self.rank + self.rotary);
        set("attention.value_length", self.rank);
        set("attention.key_length_mla", self.still + self.rotary);
        set("attention.value_length_mla", self.value);
        set("rope.dimension_count", self.rotary);
    }
}
