//! Measures files of a checkpoint on a text.

use std::path::Path;

use super::{Error, Text, Workbench};
use crate::architecture::Model;
use crate::eval::{Estimate, EvalOptions, Evaluation};
use crate::llama;
use crate::llama::model::ModelOptions;
use crate::measure::Predictions;
use crate::runtime::Factors;

/// Tokens of a chunk, where the model has as many.
const CTX: u32 = 512;

/// The checkpoint's predictions of a text, which files are compared with.
pub(super) struct Meter(Predictions);

impl Meter {
    /// Runs the checkpoint over the beginning of a text.
    pub fn new(bench: &Workbench<'_>, text: &Text, chunks: usize) -> Result<Meter, Error> {
        let options = EvalOptions {
            ctx: context(bench.subject.model),
            chunks: Some(chunks),
            ..EvalOptions::default()
        };
        let original = load(bench.path)?;
        let predictions = Predictions::of(&original, &text.words, &options, bench.scratch);
        Ok(Meter(predictions.map_err(|e| text.blame(e))?))
    }

    /// Runs a file over the same text.
    pub fn evaluate(&self, file: &Path) -> Result<Evaluation, Error> {
        Ok(self.0.compare(&load(file)?)?)
    }

    /// The mean KL divergence of a file.
    pub fn kld(&self, file: &Path) -> Result<Estimate, Error> {
        let divergence = self.evaluate(file)?.divergence;
        Ok(divergence.ok_or(Error::NothingCompared)?.kld)
    }
}

/// Tokens of a chunk: llama.cpp counts on positions that a model was made for.
pub(super) fn context(model: &Model) -> u32 {
    let key = format!("{}.context_length", model.architecture);
    let own = model.metadata.get(&key).and_then(|v| v.as_u64());
    own.map_or(CTX, |own| own.min(u64::from(CTX)) as u32)
}

pub(super) fn load(path: &Path) -> Result<llama::model::Model, Error> {
    let options = ModelOptions::default();
    Ok(crate::runtime::load(
        path,
        &options,
        Factors::default(),
        &mut |_, _| (),
    )?)
}
