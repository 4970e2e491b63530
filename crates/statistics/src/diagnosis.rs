//! The diagnosis of a model as a JSON file.

use std::collections::BTreeMap;
use std::path::Path;

use dwindle_formats::bounded;
use serde::{Deserialize, Serialize};

use super::identity::Identity;

/// The version of this layout.
const VERSION: u32 = 1;

/// A smaller divergence counts as this: only a longer text could distinguish it from zero.
const LEAST_DIVERGENCE: f64 = 1e-4;

/// What compressing costs, tensor by tensor and layer by layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The version of this layout.
    pub version: u32,
    /// The version of dwindle that measured.
    pub dwindle: String,
    /// The model.
    pub model: Identity,
    /// The kept fraction of each tensor's parameters at which methods are compared.
    pub keep: f64,
    /// The text on which the model was run, if one was given.
    pub text: Option<DiagnosisText>,
    /// Linear layers, those first that hurt most.
    pub tensors: Vec<TensorDiagnosis>,
    /// Inputs of linear layers, in the order of evaluation; none without a text.
    pub inputs: Vec<InputDiagnosis>,
}

/// What a model was run on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiagnosisText {
    /// The file's name.
    pub name: String,
    /// SHA-256 of the text.
    pub sha256: String,
    /// Tokens of a chunk.
    pub ctx: u32,
    /// Chunks; of each the second half was scored.
    pub chunks: usize,
}

/// A linear layer's weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorDiagnosis {
    /// Its name.
    pub name: String,
    /// Its shape, the row length first.
    pub shape: Vec<u64>,
    /// The energy of its output for each token, ‖W·x‖² in the mean over the calibration's tokens.
    pub output_energy: f64,
    /// e to the entropy of the whitened spectrum (Roy and Vetterli, 2007): as many directions of
    /// equal energy have the same entropy.
    pub effective_rank: f64,
    /// Shares of the output's energy that factors hold that keep 0.25, 0.5 and 0.75 of the
    /// parameters.
    pub energy: [f64; 3],
    /// The error of the output relative to its energy at `keep`, by method.
    pub output_errors: BTreeMap<String, f64>,
    /// The mean KL divergence of the model's predictions when `svd` at `keep` takes this tensor's
    /// place and all others stay as they are.
    pub kld: Option<f64>,
}

/// What layers read when every tensor of the diagnosis is compressed by `svd` at `keep`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InputDiagnosis {
    /// The weights that read it.
    pub weights: Vec<String>,
    /// The cosine between the original's and the compressed model's input, in the mean over tokens.
    pub cosine: f64,
    /// The norm of the compressed model's input over that of the original's, over all tokens.
    pub norm_ratio: f64,
}

/// Why a file gives no diagnosis.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum DiagnosisError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("`{path}` is not a diagnosis: {problem}")]
    Foreign { path: String, problem: String },
    #[error(
        "`{path}` was made without a text, so it does not say what compressing each tensor costs"
    )]
    NoText { path: String },
    #[error("`{path}` was made from another model, `{found}`; expected `{expected}`")]
    OtherModel {
        path: String,
        found: String,
        expected: String,
    },
}

impl Diagnosis {
    /// An empty one.
    pub fn new(model: Identity, keep: f64) -> Diagnosis {
        Diagnosis {
            version: VERSION,
            dwindle: env!("CARGO_PKG_VERSION").to_string(),
            model,
            keep,
            text: None,
            tensors: Vec::new(),
            inputs: Vec::new(),
        }
    }

    /// Reads a file and checks it against the model that it should be of.
    ///
    /// # Errors
    /// [`DiagnosisError`].
    pub fn open(path: &Path, model: &Identity) -> Result<Diagnosis, DiagnosisError> {
        let text = bounded::read(path, bounded::limits::MEASUREMENT)?;
        let path = path.display().to_string();
        let foreign = |problem: String| DiagnosisError::Foreign {
            path: path.clone(),
            problem,
        };
        let found: Diagnosis = serde_json::from_slice(&text).map_err(|e| foreign(e.to_string()))?;
        if found.version != VERSION {
            return Err(foreign(format!(
                "its version is {}, expected {VERSION}",
                found.version
            )));
        }
        if found.model.likeness(model).is_err() {
            return Err(DiagnosisError::OtherModel {
                path,
                found: found.model.name,
                expected: model.name.clone(),
            });
        }
        let numbers = |t: &TensorDiagnosis| {
            let all = t.output_errors.values().chain([&t.output_energy]);
            all.chain(&t.kld).all(|v| v.is_finite() && *v >= 0.0)
        };
        if let Some(bad) = found.tensors.iter().find(|t| !numbers(t)) {
            return Err(foreign(format!("`{}` has impossible figures", bad.name)));
        }
        if found.text.is_none() {
            return Err(DiagnosisError::NoText { path });
        }
        Ok(found)
    }

    /// Writes a file, which appears under its name only when it is complete.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        dwindle_formats::output::write(path, &serde_json::to_vec_pretty(self)?)
    }

    /// What a unit of a weight's output error costs in divergence: measured with the tensor
    /// compressed alone, and taken to grow in proportion. `None` for a weight that it does not
    /// know.
    pub fn sensitivity(&self, weight: &str) -> Option<f64> {
        let tensor = self.tensors.iter().find(|t| t.name == weight)?;
        let error = tensor.output_errors.get("svd")? * tensor.output_energy;
        let divergence = tensor.kld?.max(LEAST_DIVERGENCE);
        // A tensor whose output is nothing can lose nothing.
        Some(if error > 0.0 { divergence / error } else { 0.0 })
    }
}
