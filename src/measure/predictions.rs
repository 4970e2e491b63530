//! Stores a model's predictions of a text, to compare other models with.

use std::path::{Path, PathBuf};

use dwindle_formats::output::Scratch;

use crate::eval::{EvalError, EvalOptions, Evaluation, Reference, compare, write_reference};
use crate::llama::model::Model;

/// The key of the predictions' file, which no other run sees.
const KEY: [u8; 32] = [0; 32];

/// Predictions of the beginning of a text, in a file of this run's own.
pub struct Predictions {
    dir: Scratch,
    text: String,
    options: EvalOptions,
    /// Chunks of the text that were evaluated.
    pub chunks: usize,
}

impl Predictions {
    /// Runs a model over a text; `scratch` is a folder that has room for the predictions.
    ///
    /// # Errors
    /// A text that is too short, and whatever ends an evaluation.
    pub fn of(
        model: &Model,
        text: &str,
        options: &EvalOptions,
        scratch: &Path,
    ) -> Result<Predictions, EvalError> {
        let mut predictions = Predictions {
            dir: Scratch::new_in(scratch)?,
            text: text.to_string(),
            options: options.clone(),
            chunks: 0,
        };
        let file = predictions.file();
        let own = write_reference(model, text, options, &file, KEY, &mut |_| ())?;
        predictions.chunks = own.perplexity.chunks;
        Ok(predictions)
    }

    /// Runs another model over the same text, and says how far its predictions are from these.
    ///
    /// # Errors
    /// As [`Self::of`]; and models that don't share a vocabulary.
    pub fn compare(&self, model: &Model) -> Result<Evaluation, EvalError> {
        let file = self.file();
        let reference = Reference::Cache(&file, KEY);
        compare(model, &reference, &self.text, &self.options, &mut |_| ())
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("predictions")
    }
}
