//! Which model statistics belong to, whatever type its weights are stored in.

use std::collections::BTreeMap;

use dwindle_architecture::{self as architecture, Model};
use dwindle_checkpoint::Source;
use dwindle_formats::gguf::Metadata;
use dwindle_ggml::{self as ggml, GgmlError};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::sample::{Distance, Place, Sample};

/// A model, recognised in every form of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What it calls itself.
    pub name: String,
    /// llama.cpp's name of its family.
    pub architecture: String,
    /// SHA-256, in hexadecimal digits, over the family's name and the names, shapes and values of
    /// all norms. Norms stay in F32 in every file: so a checkpoint, its conversions and its
    /// quantizations have the same digest.
    pub norms_sha256: String,
    /// Of each weight, its type and a few of its values: a model that was trained further may have
    /// kept its norms, as where an adapter was merged into it. Empty in files of older versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, String>,
}

/// How thoroughly two models were compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Likeness {
    /// Norms and weights are alike.
    Weights,
    /// Norms are alike, and one of the two says nothing of its weights.
    NormsOnly,
}

impl Likeness {
    /// What the user should think about.
    pub fn warning(self) -> Option<&'static str> {
        (self == Likeness::NormsOnly).then_some(
            "the statistics distinguish models by their norms alone, as an older dwindle measured them or of \
             a file of factors; measure again if this model was trained further",
        )
    }
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
            weights: BTreeMap::new(),
        }
    }

    /// The same with samples of its weights.
    #[must_use]
    pub fn with_weights(mut self, samples: impl IntoIterator<Item = (String, Sample)>) -> Identity {
        let written = |(name, sample): (String, Sample)| (name, sample.to_string());
        self.weights = samples.into_iter().map(written).collect();
        self
    }

    /// Whether another is the same model, in whatever types. Plain floats must be those of the
    /// other, rounded as their types do; what is quantized is far from it, so that a model which
    /// was only trained a little further is not distinguished by it.
    ///
    /// # Errors
    /// What differs, in words that follow "was measured on another model".
    pub fn likeness(&self, other: &Identity) -> Result<Likeness, String> {
        let (own, others) = (&self.name, &other.name);
        if self.architecture != other.architecture {
            return Err(format!(
                "a `{}`, while `{others}` is a `{}`",
                self.architecture, other.architecture
            ));
        }
        if self.norms_sha256 != other.norms_sha256 {
            return Err(format!(
                "the norms of `{others}` differ from those of `{own}`"
            ));
        }
        let mut distance = Distance::default();
        for (name, sample) in &self.weights {
            let pair = other
                .weights
                .get(name)
                .map(|s| (Sample::parse(sample), Sample::parse(s)));
            let Some((Some(a), Some(b))) = pair else {
                continue;
            };
            if !distance.add(&a, &b) {
                return Err(format!(
                    "`{name}` of `{others}` has other values than that of `{own}`"
                ));
            }
        }
        match distance {
            _ if distance.is_far() => Err(format!(
                "the weights of `{others}` are far from those of `{own}`"
            )),
            Distance { count: 0, .. } => Ok(Likeness::NormsOnly),
            _ => Ok(Likeness::Weights),
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
        let mut samples = Vec::new();
        for tensor in model.tensors.iter().filter(|t| t.is_weight()) {
            let ty = tensor.source_type(source);
            if !ggml::readable(ty) || tensor.elements() == 0 {
                continue;
            }
            let place = Place::of(&tensor.name, tensor.row_len(), tensor.row_count());
            let row = architecture::values(tensor, source, place.row..place.row + 1)?;
            samples.push((tensor.name.clone(), place.sample(ty, &row)));
        }
        Ok(Identity::new(&model.metadata, norms).with_weights(samples))
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
