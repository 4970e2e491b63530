//! Measures what a change of some weights does to the predictions of a running model.

use std::path::Path;

use super::predictions::Predictions;
use crate::architecture::ModelTensor;
use crate::eval::{Estimate, EvalError, EvalOptions};
use crate::llama::model::{LlamaError, Model};
use crate::plan::{Subject, TensorError, TransformError};

/// Why an experiment failed. The weights are as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum ExperimentError {
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Llama(#[from] LlamaError),
}

/// A model that runs, loaded so that its weights can be replaced, and a text to run it on.
pub struct Experiment<'a> {
    running: &'a Model,
    subject: Subject<'a>,
    text: &'a str,
    options: &'a EvalOptions,
    scratch: &'a Path,
    baseline: Option<Baseline>,
}

/// The unchanged model.
struct Baseline {
    predictions: Predictions,
    /// What the model is away from its own predictions: they are kept with 16 bits.
    floor: f64,
}

impl<'a> Experiment<'a> {
    /// Sets it up; nothing is run before the first question.
    pub fn new(
        running: &'a Model,
        subject: Subject<'a>,
        (text, options): (&'a str, &'a EvalOptions),
        scratch: &'a Path,
    ) -> Experiment<'a> {
        Experiment {
            running,
            subject,
            text,
            options,
            scratch,
            baseline: None,
        }
    }

    /// Chunks of the text that are evaluated.
    ///
    /// # Errors
    /// As [`Self::divergence`].
    pub fn chunks(&mut self) -> Result<usize, ExperimentError> {
        Ok(self.baseline()?.predictions.chunks)
    }

    /// The mean KL divergence with some tensors changed, above that of the unchanged model. The
    /// weights are put back before it returns, whether it succeeds or fails. Tensors that llama.cpp
    /// does not load change nothing.
    ///
    /// # Errors
    /// A text that is too short, values that can't be read or changed, whatever ends an evaluation.
    pub fn divergence(
        &mut self,
        tensors: &[&'a ModelTensor],
        change: &dyn Fn(&ModelTensor) -> Result<Vec<f32>, TransformError>,
    ) -> Result<Estimate, ExperimentError> {
        let (running, subject) = (self.running, self.subject);
        let baseline = self.baseline()?;
        let mut replaced = Replaced {
            running,
            subject,
            tensors: Vec::new(),
        };
        let is_loaded = |t: &&&ModelTensor| running.has_weight(&t.name);
        for tensor in tensors.iter().filter(is_loaded) {
            let changed = change(tensor).map_err(TensorError::of(&tensor.name))?;
            replaced.tensors.push(tensor);
            running.replace(&tensor.name, &changed)?;
        }
        let found = baseline.kld(running)?;
        replaced.put_back()?;
        Ok(Estimate {
            value: (found.value - baseline.floor).max(0.0),
            error: found.error,
        })
    }

    fn baseline(&mut self) -> Result<&Baseline, ExperimentError> {
        let baseline = match self.baseline.take() {
            Some(baseline) => baseline,
            None => Baseline::new(self.running, self.text, self.options, self.scratch)?,
        };
        Ok(self.baseline.insert(baseline))
    }
}

impl Baseline {
    fn new(
        model: &Model,
        text: &str,
        options: &EvalOptions,
        scratch: &Path,
    ) -> Result<Baseline, EvalError> {
        let mut baseline = Baseline {
            predictions: Predictions::of(model, text, options, scratch)?,
            floor: 0.0,
        };
        baseline.floor = baseline.kld(model)?.value;
        Ok(baseline)
    }

    fn kld(&self, model: &Model) -> Result<Estimate, EvalError> {
        let found = self.predictions.compare(model)?.divergence;
        Ok(found.map_or_else(Estimate::default, |d| d.kld))
    }
}

/// Weights of a running model that were replaced. They are put back when it is dropped.
struct Replaced<'a> {
    running: &'a Model,
    subject: Subject<'a>,
    tensors: Vec<&'a ModelTensor>,
}

impl Replaced<'_> {
    fn put_back(&mut self) -> Result<(), ExperimentError> {
        while let Some(tensor) = self.tensors.pop() {
            let original = self.subject.values(tensor);
            let original = original.map_err(TensorError::of(&tensor.name))?;
            self.running.replace(&tensor.name, &original)?;
            tensor.release(self.subject.source);
        }
        Ok(())
    }
}

impl Drop for Replaced<'_> {
    fn drop(&mut self) {
        // It is dropped full only where another error is on its way, which is the one to report.
        while !self.tensors.is_empty() {
            let _ = self.put_back();
        }
    }
}
