//! Files of a checkpoint made and measured.

use std::path::{Path, PathBuf};

use dwindle::architecture::{Model, ModelTensor};
use dwindle::budget::Subject;
use dwindle::checkpoint::Source;
use dwindle::eval::{
    Estimate, EvalError, EvalOptions, Evaluation, Reference, compare, write_reference,
};
use dwindle::llama;
use dwindle::llama::model::ModelOptions;
use dwindle::pipeline::{self, Factors, Inputs, Options, PipelineError};
use dwindle::plan::{Plan, Rounding};
use dwindle::statistics::Measured;
use dwindle_formats::output::Scratch;

use super::Failure;
use super::output::read_text;

/// Tokens of a chunk, where the model has as many.
const CTX: u32 = 512;

/// What is to be compressed, and what is known of it.
#[derive(Clone, Copy)]
pub struct Checkpoint<'a> {
    pub path: &'a Path,
    pub model: &'a Model,
    pub source: &'a dyn Source,
    pub measured: Measured<'a>,
    pub rounding: Rounding,
    /// The text on which sensitivities are measured.
    pub text: &'a Path,
    pub options: Options,
    /// A folder that has room for files of the model.
    pub scratch: &'a Path,
}

impl Checkpoint<'_> {
    /// As the library wants it.
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            model: self.model,
            source: self.source,
            measured: self.measured,
            rounding: self.rounding,
            scratch: self.scratch,
        }
    }

    /// Weights.
    pub fn elements(&self) -> u64 {
        self.model.tensors.iter().map(|t| t.elements()).sum()
    }

    /// Bytes of the checkpoint's weights.
    pub fn bytes(&self) -> u64 {
        let bytes = |t: &ModelTensor| t.source_type(self.source).bytes(&t.shape);
        self.model.tensors.iter().filter_map(bytes).sum()
    }

    /// A folder that is gone when it is dropped.
    pub fn temporary(&self) -> std::io::Result<Scratch> {
        Scratch::new_in(self.scratch)
    }

    /// Writes the file of a plan.
    pub fn write(&self, plan: &Plan, file: &Path) -> Result<u64, PipelineError> {
        let inputs = Inputs {
            model: self.model,
            source: self.source,
            measured: self.measured,
            fitted: None,
            // Nobody goes on with a file that is gone after a measurement.
            content: &[0; 32],
        };
        let nothing = &mut |_| ();
        Ok(pipeline::compress(plan, &inputs, file, self.options, nothing)?.bytes)
    }
}

/// The checkpoint's predictions of a text, which files are held against.
pub struct Meter {
    dir: Scratch,
    text: String,
    options: EvalOptions,
}

/// The key of the predictions, which no other process sees.
const KEY: [u8; 32] = [0; 32];

impl Meter {
    /// Runs the checkpoint over the beginning of a text.
    pub fn new(checkpoint: &Checkpoint<'_>, text: &Path, chunks: usize) -> Result<Meter, Failure> {
        let meter = Meter {
            dir: checkpoint.temporary()?,
            text: read_text(text)?,
            options: EvalOptions {
                ctx: context(checkpoint.model),
                chunks: Some(chunks),
                ..EvalOptions::default()
            },
        };
        let original = load(checkpoint.path)?;
        let (words, options) = (&meter.text, &meter.options);
        write_reference(&original, words, options, &meter.cache(), KEY, &mut |_| ())
            .map_err(|e| unusable(text, e))?;
        Ok(meter)
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("reference")
    }

    /// Runs a file over the same text.
    pub fn evaluate(&self, file: &Path) -> Result<Evaluation, Failure> {
        let model = load(file)?;
        let cache = self.cache();
        let reference = Reference::Cache(&cache, KEY);
        Ok(compare(
            &model,
            &reference,
            &self.text,
            &self.options,
            &mut |_| (),
        )?)
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
    Ok(pipeline::load(
        path,
        &options,
        Factors::default(),
        &mut |_, _| (),
    )?)
}
