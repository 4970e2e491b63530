//! Files of a checkpoint made and measured.

use std::path::Path;

use dwindle_formats::output::Scratch;

use super::Failure;
use super::output::read_text;
use crate::architecture::Model;
use crate::eval::{Estimate, EvalError, EvalOptions, Evaluation};
use crate::llama;
use crate::llama::model::ModelOptions;
use crate::measure::Predictions;
use crate::plan::{Plan, Rounding, Subject};
use crate::runtime::Factors;
use crate::target::Task;
use crate::writing::{Inputs, Options, PipelineError};

/// Tokens of a chunk, where the model has as many.
const CTX: u32 = 512;

/// What is to be compressed, and what is known of it.
#[derive(Clone, Copy)]
pub struct Checkpoint<'a> {
    pub path: &'a Path,
    pub subject: Subject<'a>,
    pub rounding: Rounding,
    /// The text on which sensitivities are measured.
    pub text: &'a Path,
    pub options: Options,
    /// A folder that has room for files of the model.
    pub scratch: &'a Path,
}

impl Checkpoint<'_> {
    /// As the library wants it.
    pub fn task(&self) -> Task<'_> {
        Task {
            subject: self.subject,
            rounding: self.rounding,
            scratch: self.scratch,
        }
    }

    /// A folder that is gone when it is dropped.
    pub fn temporary(&self) -> std::io::Result<Scratch> {
        Scratch::new_in(self.scratch)
    }

    /// Writes the file of a plan.
    pub fn write(&self, plan: &Plan, file: &Path) -> Result<u64, PipelineError> {
        let inputs = Inputs {
            subject: self.subject,
            fitted: None,
            // Nobody goes on with a file that is gone after a measurement.
            content: &[0; 32],
        };
        let nothing = &mut |_| ();
        Ok(crate::writing::compress(plan, &inputs, file, self.options, nothing)?.bytes)
    }
}

/// The checkpoint's predictions of a text, which files are compared with.
pub struct Meter(Predictions);

impl Meter {
    /// Runs the checkpoint over the beginning of a text.
    pub fn new(checkpoint: &Checkpoint<'_>, text: &Path, chunks: usize) -> Result<Meter, Failure> {
        let options = EvalOptions {
            ctx: context(checkpoint.subject.model),
            chunks: Some(chunks),
            ..EvalOptions::default()
        };
        let words = read_text(text)?;
        let original = load(checkpoint.path)?;
        let predictions = Predictions::of(&original, &words, &options, checkpoint.scratch);
        Ok(Meter(predictions.map_err(|e| unusable(text, e))?))
    }

    /// Runs a file over the same text.
    pub fn evaluate(&self, file: &Path) -> Result<Evaluation, Failure> {
        Ok(self.0.compare(&load(file)?)?)
    }

    /// The mean KL divergence of a file.
    pub fn kld(&self, file: &Path) -> Result<Estimate, Failure> {
        let none = || Failure::Input("nothing was compared".into());
        Ok(self.evaluate(file)?.divergence.ok_or_else(none)?.kld)
    }
}

/// Tokens of a chunk: llama.cpp counts on positions that a model was made for.
pub fn context(model: &Model) -> u32 {
    let key = format!("{}.context_length", model.architecture);
    let own = model.metadata.get(&key).and_then(|v| v.as_u64());
    own.map_or(CTX, |own| own.min(u64::from(CTX)) as u32)
}

/// What is wrong with a text, named.
pub fn unusable(text: &Path, error: EvalError) -> Failure {
    match error {
        EvalError::TextTooShort { .. } => Failure::file(text, error),
        error => error.into(),
    }
}

fn load(path: &Path) -> Result<llama::model::Model, Failure> {
    let options = ModelOptions::default();
    Ok(crate::runtime::load(
        path,
        &options,
        Factors::default(),
        &mut |_, _| (),
    )?)
}
