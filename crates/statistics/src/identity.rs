//! Which model statistics belong to, whatever type its weights are stored in.

use dwindle_formats::gguf::Metadata;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use dwindle_architecture::{self as architecture, Model};
use dwindle_checkpoint::Source;
use dwindle_ggml::GgmlError;

/// A model, recognised in every form of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What it calls itself.
    pub name: String,
    /// llama.cpp's name of its family.
    pub architecture: String,
    /// SHA-256, in hexadecimal digits, over the family's name and the names, shapes and values of
    /// all norms. Norms stay in F32 in every file, and training changes them: so a checkpoint, its
    /// conversions and its quantizations have the same digest, and another model has another.
    pub norms_sha256: String,
}

/// A tensor's name, shape and values.
pub type Norm = (String, Vec<u64>, Vec<f32>);

impl Identity {
    /// The identity of a model with this metadata and these norms, in any order.
    pub fn new(metadata: &Metadata, mut norms: Vec<Norm>) -> Identity {
        let text = |key: &str| metadata.get(key).and_then(|v| v.as_str()).unwrap_or("");
        let architecture = text("general.architecture");
        norms.sort_by(|a, b| a.0.cmp(&b.0));
        let mut hash = Sha256::new();
        hash.update(architecture);
        for (name, shape, values) in &norms {
            hash.update([0]);
            hash.update(name);
            hash.update([0]);
            for n in shape {
                hash.update(n.to_le_bytes());
            }
            for v in values {
                hash.update(v.to_le_bytes());
            }
        }
        let name = text("general.name");
        Identity {
            name: if name.is_empty() { "unnamed" } else { name }.to_string(),
            architecture: architecture.to_string(),
            norms_sha256: hex(&hash.finalize()),
        }
    }

    /// The identity of a checkpoint.
    ///
    /// # Errors
    /// A norm has a type that can't be read as numbers.
    pub fn of(model: &Model, source: &dyn Source) -> Result<Identity, GgmlError> {
        let mut norms = Vec::new();
        for tensor in model.tensors.iter().filter(|t| is_norm(&t.name)) {
            let values = architecture::values(tensor, source, 0..tensor.row_count())?;
            norms.push((tensor.name.clone(), tensor.shape.clone(), values));
        }
        Ok(Identity::new(&model.metadata, norms))
    }
}

/// Whether a tensor counts for [`Identity`].
pub fn is_norm(name: &str) -> bool {
    name.ends_with("_norm.weight")
}

/// SHA-256 in hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Bytes as lowercase hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
