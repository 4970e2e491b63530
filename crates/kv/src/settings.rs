//! What a packed state says of how it was packed.

use dwindle_formats::gguf::TensorType;
use serde::{Deserialize, Serialize};

use crate::chunked_svd::Ranks;
use crate::error::KvError;

/// How cells were packed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum Method {
    /// Bit by bit as they were.
    Lossless,
    /// Along the components of a codebook.
    Transform {
        /// The digest of the codebook.
        codebook: String,
        /// The step of the oldest cells.
        step: f32,
    },
    /// As leading singular triples.
    ChunkedSvd {
        /// How many.
        ranks: Ranks,
    },
    /// In one of ggml's types.
    Quantize {
        /// Its name.
        #[serde(rename = "type")]
        ty: String,
        /// The size of the Hadamard matrix before it, of keys and of values; 0 for none.
        turns: [u32; 2],
    },
}

/// What a packed state says of how it was packed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The program's version.
    pub dwindle: String,
    /// How cells were packed.
    #[serde(flatten)]
    pub method: Method,
    /// Cells of a record.
    pub chunk: usize,
    /// A digest of the model, where it is known.
    pub model: Option<String>,
    /// Elements of a head's key and value, where they are known.
    pub heads: Option<[usize; 2]>,
    /// The sizes of the Hadamard matrices before keys and values, as they were found, where the state's version says nothing
    /// of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated: Option<[u32; 2]>,
}

impl Settings {
    pub(crate) fn read(bytes: &[u8]) -> Result<Settings, KvError> {
        serde_json::from_slice(bytes).map_err(|e| KvError::Settings(e.to_string()))
    }
}

/// A type by its name in settings.
pub(crate) fn type_of(name: &str) -> Result<TensorType, KvError> {
    name.parse().map_err(|e| KvError::Settings(format!("{e}")))
}
