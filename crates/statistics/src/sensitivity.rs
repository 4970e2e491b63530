//! Measured sensitivities as a JSON file that grows with each measurement, so that a killed run
//! continues where it was.

use std::path::Path;

use dwindle_formats::bounded;
use serde::{Deserialize, Serialize};

use super::diagnosis::DiagnosisText;
use super::identity::Identity;

/// The version of this layout.
const VERSION: u32 = 3;

/// Measurements of one model on one text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensitivities {
    /// The version of this layout.
    pub version: u32,
    /// The model.
    pub model: Identity,
    /// A digest of its weights, and of what they were rounded by.
    pub fingerprint: String,
    /// The text, of which the first chunks were evaluated.
    pub text: DiagnosisText,
    /// What was measured.
    pub groups: Vec<Sensitivity>,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensitivity {
    /// The tensors that were rounded together.
    pub tensors: Vec<String>,
    /// The mean KL divergence from the model as it is.
    pub kld: f64,
    /// Its standard error over tokens.
    pub error: f64,
}

/// Why a file can't be gone on with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum SensitivityError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("`{path}` holds no sensitivities: {problem}; delete it, or name another file")]
    Foreign { path: String, problem: String },
    #[error("`{path}` was measured on another {what}; delete it, or name another file")]
    Other { path: String, what: &'static str },
}

impl Sensitivities {
    /// None yet.
    pub fn new(model: Identity, fingerprint: String, text: DiagnosisText) -> Sensitivities {
        Sensitivities {
            version: VERSION,
            model,
            fingerprint,
            text,
            groups: Vec::new(),
        }
    }

    /// Goes on with a file, or begins where there is none.
    ///
    /// # Errors
    /// [`SensitivityError`].
    pub fn open(
        path: &Path,
        model: Identity,
        fingerprint: String,
        text: DiagnosisText,
    ) -> Result<Sensitivities, SensitivityError> {
        let Some(bytes) = bounded::read_if_there(path, bounded::limits::MEASUREMENT)? else {
            return Ok(Sensitivities::new(model, fingerprint, text));
        };
        let path = path.display().to_string();
        let foreign = |problem: String| SensitivityError::Foreign {
            path: path.clone(),
            problem,
        };
        let found: Sensitivities =
            serde_json::from_slice(&bytes).map_err(|e| foreign(e.to_string()))?;
        if found.version != VERSION {
            let problem = format!("its version is {}, expected {VERSION}", found.version);
            return Err(foreign(problem));
        }
        let is_number = |s: &Sensitivity| s.kld.is_finite() && s.error.is_finite();
        if let Some(bad) = found.groups.iter().find(|s| !is_number(s)) {
            return Err(foreign(format!("{:?} has impossible figures", bad.tensors)));
        }
        let other = |what| SensitivityError::Other {
            path: path.clone(),
            what,
        };
        if found.model.likeness(&model).is_err() || found.fingerprint != fingerprint {
            return Err(other("model, or with other statistics"));
        }
        let cut = |t: &DiagnosisText| (t.sha256.clone(), t.ctx, t.chunks);
        if cut(&found.text) != cut(&text) {
            return Err(other("text, or on other chunks of it"));
        }
        Ok(found)
    }

    /// What was measured of these tensors together.
    pub fn of(&self, tensors: &[String]) -> Option<&Sensitivity> {
        self.groups.iter().find(|s| s.tensors == tensors)
    }

    /// Writes a file, which appears under its name only when it is complete.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        dwindle_formats::output::write(path, &serde_json::to_vec_pretty(self)?)
    }
}
