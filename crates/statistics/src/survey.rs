//! What a survey of a model found, as a JSON file.

use std::path::Path;

use dwindle_formats::bounded;
use serde::{Deserialize, Serialize};

/// What choosing types for a model needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SurveyFile {
    version: u32,
    /// A digest of everything that it depends on.
    key: String,
    /// The mean KL divergence of the model in Q8_0; 0 in a part where another one measures it.
    pub coarse: f64,
    /// The weights, in the model's order.
    pub tensors: Vec<TensorSurvey>,
}

/// What was found of one weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorSurvey {
    /// Its name.
    pub name: String,
    /// Types that it may have.
    pub types: Vec<TypeSurvey>,
    /// The type in which its divergence was measured.
    pub probe: TypeSurvey,
    /// The mean KL divergence that it causes there.
    pub kld: f64,
    /// Importance weights of its columns, of each slice or of all; empty where its input is unknown.
    pub importance: Vec<f32>,
}

/// One type of a weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TypeSurvey {
    /// The type's name.
    pub name: String,
    /// The energy of the output's error over that of the output.
    pub error: f64,
}

/// Why a file holds no survey.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum SurveyError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("`{path}` holds no survey of this model: {problem}; delete it")]
    Foreign { path: String, problem: String },
}

impl SurveyFile {
    /// The version of the layout. Who names a file by what it depends on includes it, so that a file of an
    /// older layout is measured again instead of being refused.
    pub const VERSION: u32 = 4;

    /// What was found, for the digest of what it depends on.
    pub fn new(key: String, coarse: f64, tensors: Vec<TensorSurvey>) -> SurveyFile {
        SurveyFile {
            version: Self::VERSION,
            key,
            coarse,
            tensors,
        }
    }

    /// Reads a file, if there is one.
    ///
    /// # Errors
    /// [`SurveyError`].
    pub fn open(path: &Path, key: &str) -> Result<Option<SurveyFile>, SurveyError> {
        let Some(bytes) = bounded::read_if_there(path, bounded::limits::MEASUREMENT)? else {
            return Ok(None);
        };
        let foreign = |problem: String| SurveyError::Foreign {
            path: path.display().to_string(),
            problem,
        };
        let found: SurveyFile =
            serde_json::from_slice(&bytes).map_err(|e| foreign(e.to_string()))?;
        if found.version != Self::VERSION || found.key != key {
            return Err(foreign("it is of another version or text".into()));
        }
        let is_number = |t: &TensorSurvey| {
            t.kld.is_finite()
                && t.probe.error.is_finite()
                && t.types.iter().all(|t| t.error.is_finite())
                && t.importance.iter().all(|v| v.is_finite())
        };
        if !found.coarse.is_finite() {
            return Err(foreign("it has impossible figures".into()));
        }
        match found.tensors.iter().find(|t| !is_number(t)) {
            Some(bad) => Err(foreign(format!("`{}` has impossible figures", bad.name))),
            None => Ok(Some(found)),
        }
    }

    /// Writes the file, which appears under its name only when it is complete.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        dwindle_formats::output::write(path, &serde_json::to_vec(self)?)
    }
}
