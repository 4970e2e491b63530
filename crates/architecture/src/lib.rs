//! Models in GGUF's terms: names, shapes, metadata and tokenizer, whatever the source was.
//!
//! What is particular to a family stands in `families` as data; everything else is shared.
//!
//! Tensors and metadata are those that llama.cpp's `convert_hf_to_gguf.py` writes, in its order,
//! save where it is known to do otherwise on purpose:
//!
//! - `general.file_type` and `general.quantization_version` depend on the types of the output, and
//!   whoever writes it adds them.
//! - A snapshot of the Hugging Face cache is named after its model (`Qwen/Qwen3-0.6B`), where the
//!   converter takes the commit, the folder's name.
//! - A pre-tokenizer that the converter's table lacks is recognised by the structure of
//!   `tokenizer.json`; the converter gives up.
//! - `tokenizer.json` is the vocabulary. `transformers`, through which the converter reads it,
//!   builds some tokenizers anew from their parts, and can number added tokens otherwise where
//!   `tokenizer_config.json` does not list them.
//! - Where a SentencePiece vocabulary is read from `tokenizer.json` and is smaller than the
//!   embedding, it is padded with unused tokens, without which llama.cpp would not load the model.
//! - The names in `tokenizer.chat_templates` are sorted; the converter's order changes from run to
//!   run.
//! - What llama.cpp could not run is refused (a missing tensor, a shape that the configuration
//!   contradicts, an unknown rotary scaling); the converter writes it.

mod adapter;
mod assembly;
mod card;
mod config;
mod dims;
mod elements;
mod error;
mod families;
mod forms;
mod front_matter;
mod gguf;
mod huggingface;
mod kinds;
mod latent;
mod linear;
mod names;
mod origins;
mod parameters;
mod rope;
mod source_names;
mod state_space;
mod to_huggingface;
mod tokenizer;
mod traits;
mod values;
mod weights;
mod windows;

use std::collections::HashMap;
use std::path::Path;

use dwindle_checkpoint::{self as checkpoint, Caches, Source};
use dwindle_formats::bounded;
use dwindle_formats::gguf::{Metadata, TensorType};

pub use adapter::{AdapterTensor, adapter};
pub use error::Error;
pub use families::{Known, known};
pub use gguf::from_gguf;
pub use huggingface::from_huggingface;
pub use to_huggingface::{Checkpoint, to_huggingface};
pub use traits::{Alone, Root, Traits};
pub use values::values;

/// A checkpoint seen as the model that llama.cpp knows.
#[derive(Debug, Clone)]
pub struct Model {
    /// llama.cpp's name of the family (`llama`, `qwen3`).
    pub architecture: String,
    /// What the GGUF file will say, less what depends on the output's types
    /// (`general.file_type`, `general.quantization_version`).
    pub metadata: Metadata,
    /// Every tensor of the output in output order.
    pub tensors: Vec<ModelTensor>,
    /// Tensors of the checkpoint that llama.cpp's language model has no place for, such as those that see.
    pub left_out: Vec<String>,
    /// What a user of the family must know, in a sentence.
    pub remark: Option<&'static str>,
}

impl Model {
    /// What a user must know: on what is left out, and on the family, in a sentence each.
    pub fn notes(&self) -> Vec<String> {
        let remark = self.remark.map(str::to_string);
        self.on_left_out().into_iter().chain(remark).collect()
    }

    fn on_left_out(&self) -> Option<String> {
        let first = self.left_out.first()?;
        let (tensors, are) = match self.left_out.len() {
            1 => ("a tensor".to_string(), "is"),
            n => (format!("{n} tensors"), "are"),
        };
        Some(format!(
            "{tensors} {are} left out, which llama.cpp's `{}` has no place for: {}`{first}`",
            self.architecture,
            if are == "is" { "" } else { "the first is " },
        ))
    }

    /// Every tensor by its name.
    pub fn by_name(&self) -> HashMap<&str, &ModelTensor> {
        self.tensors.iter().map(|t| (t.name.as_str(), t)).collect()
    }
}

/// A tensor of the model and how to assemble it from the source.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelTensor {
    /// GGUF name (`blk.0.attn_q.weight`).
    pub name: String,
    /// Dimensions, row length first.
    pub shape: Vec<u64>,
    /// How its rows come out of the source.
    pub assembly: Assembly,
    /// llama.cpp keeps it in F32 whatever the type of the file (norms, biases, 1-D tensors,
    /// routers), as its converter does.
    pub always_f32: bool,
}

/// How a model tensor's rows come out of source tensors. Elements are moved as bytes; what is computed
/// of them says so.
#[derive(Debug, Clone, PartialEq)]
pub enum Assembly {
    /// The source tensor as it is (index into [`dwindle_checkpoint::Source::tensors`]).
    Copy(usize),
    /// Rows of each head (elements, in a bias) reordered from rotary halves to interleaved pairs,
    /// as llama.cpp's `llama` family expects Q and K.
    PermuteRotary {
        /// The source tensor.
        tensor: usize,
        /// Heads that share the rows evenly.
        heads: u64,
    },
    /// Another matrix, or each of a stack of them, whose columns are the rows.
    Transpose(Box<ModelTensor>),
    /// The source tensor, one added to each element: in F16 where that is its type, otherwise in F32.
    PlusOne(usize),
    /// Q, K and V one after another, Q multiplied by a scale and rounded to its type.
    Fused {
        /// The source tensors, which have as many rows each.
        parts: [usize; 3],
        /// What Q is multiplied by.
        scale: f32,
    },
    /// Source tensors stacked along a new slowest dimension (experts).
    Stack(Vec<usize>),
    /// Rows of another tensor, in this order; elements, of a tensor of one dimension.
    Select {
        /// The tensor that has the rows.
        of: Box<ModelTensor>,
        /// Their numbers, over all dimensions but the first.
        rows: Vec<u64>,
    },
    /// Blocks of the columns of another tensor, in this order.
    Columns {
        /// The tensor that has the columns.
        of: Box<ModelTensor>,
        /// Columns of a block.
        each: u64,
        /// The blocks' numbers.
        blocks: Vec<u64>,
    },
    /// The exponential of each element of the source tensor, negated, in F32.
    Decay(usize),
    /// Every second row of another tensor, which lie in the order of this one's.
    Alternate {
        /// The tensor that has the rows. Where they are single elements, so many make a row of this one.
        of: Box<ModelTensor>,
        /// The number of the first, 0 or 1.
        first: u64,
    },
    /// Values that are nowhere in the source: made from the configuration (`rope_freqs`), or
    /// fitted.
    Made {
        /// Their type.
        ty: TensorType,
        /// Rows one after another, as in a file.
        bytes: Vec<u8>,
    },
}

/// Opens a checkpoint: a Hugging Face folder, a GGUF file, or the name of a model in the Hugging
/// Face cache.
///
/// Whatever is not supported is refused here, before any work; tensor data is not read.
///
/// # Errors
/// When the checkpoint is missing, damaged or not supported.
pub fn open(name: impl AsRef<Path>) -> Result<(Box<dyn Source>, Model), Error> {
    open_with(name, &Caches::from_env())
}

/// As [`open`], with the cache folders to search for names.
///
/// # Errors
/// As [`open`].
pub fn open_with(
    name: impl AsRef<Path>,
    caches: &Caches,
) -> Result<(Box<dyn Source>, Model), Error> {
    let path = checkpoint::resolve(name.as_ref(), caches)?;
    if path.is_dir() {
        let folder = checkpoint::huggingface::HuggingFace::open(&path)?;
        match from_huggingface(&folder) {
            // Some weights are put together, turned or computed, which codes can't be.
            Err(Error::Feature { .. } | Error::UnequalParts { .. }) if folder.has_codes() => {
                let folder = checkpoint::huggingface::HuggingFace::open_in_floats(&path)?;
                let model = from_huggingface(&folder)?;
                return Ok((Box::new(folder), model));
            }
            model => return Ok((Box::new(folder), model?)),
        }
    }
    if !begins_with_gguf(&path)? {
        return Err(checkpoint::Error::NoCheckpoint {
            found: found(&path),
            path,
        }
        .into());
    }
    let file = checkpoint::gguf::Gguf::open(&path)?;
    let model = from_gguf(&file)?;
    Ok((Box::new(file), model))
}

fn begins_with_gguf(path: &Path) -> Result<bool, Error> {
    use std::io::Read;
    let mut magic = Vec::new();
    let file = bounded::open(path).map_err(checkpoint::Error::from)?;
    file.take(4)
        .read_to_end(&mut magic)
        .map_err(checkpoint::Error::from)?;
    Ok(magic == dwindle_formats::gguf::MAGIC)
}

fn found(path: &Path) -> String {
    match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors" | "bin" | "pt" | "pth" | "ckpt") => {
            "a file of weights lacks configuration and tokenizer".into()
        }
        _ => "the file does not begin with `GGUF`".into(),
    }
}

/// The layer and the role of a tensor by its GGUF name: `blk.3.attn_q.weight` is layer 3,
/// `attn_q`.
pub fn role(name: &str) -> (Option<u32>, &str) {
    let stem = name
        .strip_suffix(".weight")
        .or_else(|| name.strip_suffix(".bias"))
        .unwrap_or(name);
    let in_layer = stem.strip_prefix("blk.").and_then(|rest| {
        let (layer, role) = rest.split_once('.')?;
        Some((layer.parse().ok()?, role))
    });
    match in_layer {
        Some((layer, role)) => (Some(layer), role),
        None => (None, stem),
    }
}

/// Roles of more than one dimension that llama.cpp still expects in F32.
const F32_ROLES: [&str; 20] = [
    "ffn_gate_inp",
    "ffn_gate_inp_shexp",
    "position_embd",
    "token_types",
    "ssm_conv1d",
    "shortconv.conv",
    "time_mix_first",
    "time_mix_w1",
    "time_mix_w2",
    "time_mix_decay_w1",
    "time_mix_decay_w2",
    "time_mix_lerp_fused",
    "posnet.norm1",
    "posnet.norm2",
    "ssm_conv1d_q",
    "ssm_conv1d_k",
    "ssm_conv1d_v",
    "altup_correct_coef",
    "altup_predict_coef",
    "indexer.proj",
];

fn is_always_f32(name: &str, shape: &[u64]) -> bool {
    shape.len() <= 1
        || !name.ends_with(".weight")
        || name.ends_with("_norm.weight")
        || F32_ROLES.contains(&role(name).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_come_from_names() {
        assert_eq!(role("blk.3.attn_q.weight"), (Some(3), "attn_q"));
        assert_eq!(role("blk.12.attn_k.bias"), (Some(12), "attn_k"));
        assert_eq!(role("token_embd.weight"), (None, "token_embd"));
        assert_eq!(role("blk.x.y.weight"), (None, "blk.x.y"));
    }

    #[test]
    fn norms_biases_and_routers_stay_f32() {
        assert!(is_always_f32("blk.0.attn_norm.weight", &[64]));
        assert!(is_always_f32("blk.0.attn_q_norm.weight", &[64, 2]));
        assert!(is_always_f32("blk.0.attn_q.bias", &[64, 1]));
        assert!(is_always_f32("blk.0.ffn_gate_inp.weight", &[64, 8]));
        assert!(!is_always_f32("blk.0.ffn_gate.weight", &[64, 8]));
    }
}
