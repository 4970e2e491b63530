//! Measurements of a model as files: statistics of each linear layer's input, and the costs of
//! compressing its tensors.

mod accumulate;
mod diagnosis;
mod identity;
mod imatrix;
mod layout;
mod reader;
mod sample;
mod survey;
mod writer;

pub use accumulate::{Accumulator, add_panels, cut};
pub use diagnosis::{Diagnosis, DiagnosisError, DiagnosisText, InputDiagnosis, TensorDiagnosis};
pub use identity::Likeness;
pub use identity::{Identity, digest, hex, is_norm};
pub use imatrix::{Entry, Importance, ImportanceError, Part, Run, entries, write as write_imatrix};
pub use layout::{Group, Provenance};
pub use reader::{Gram, Statistics, StatisticsError};
pub use sample::{Place, Sample};
pub use survey::{SurveyError, SurveyFile, TensorSurvey, TypeSurvey};
pub use writer::StatisticsWriter;

use dwindle_method as method;

/// What is known of the layers' inputs when weights are transformed.
#[derive(Clone, Copy, Default)]
pub struct Measured<'a> {
    /// Importance weights for quantization.
    pub importance: Option<&'a Importance>,
    /// Gram matrices for methods that fit weights to their inputs.
    pub statistics: Option<&'a Statistics>,
    /// What compressing each weight costs.
    pub diagnosis: Option<&'a Diagnosis>,
    /// Whether the inputs of all layers in blocks will be measured while the weights are rounded.
    pub walked: bool,
}

impl<'a> Measured<'a> {
    /// Rows that a weight's slice has got; 0 where nothing was measured.
    pub fn tokens(&self, weight: &str, expert: usize) -> u64 {
        self.statistics
            .and_then(|s| s.tokens(weight, expert))
            .unwrap_or(0)
    }

    /// The Gram matrix of a weight's input, of one expert in a stack; `None` where it was not
    /// measured.
    ///
    /// # Errors
    /// The matrix is damaged.
    pub fn gram(
        &self,
        weight: &str,
        expert: usize,
    ) -> Result<Option<method::gram::Gram<'a>>, StatisticsError> {
        let Some(statistics) = self.statistics else {
            return Ok(None);
        };
        let gram = statistics.gram(weight, expert)?;
        Ok(gram.map(|g| method::gram::Gram {
            values: g.values,
            n: g.n,
        }))
    }
}
