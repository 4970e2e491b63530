//! A checkpoint and its compressed copy, run side by side.

use std::path::Path;

use super::{Error, Text, Workbench};
use crate::fitting::{FitOptions, FitText, Unfitted, fit};
use crate::llama::model::{Model, ModelOptions};
use crate::plan::{Base, Plan, Recipe};
use crate::progress::Unit;
use crate::runtime::Factors;
use crate::writing::{Fitted, Inputs};

/// The checkpoint as it is.
pub(super) fn on_cpu(checkpoint: &Path) -> Result<Model, Error> {
    let options = cpu_options();
    Ok(crate::runtime::load(
        checkpoint,
        &options,
        Factors::default(),
        &mut |_, _| (),
    )?)
}

/// The checkpoint, and a copy in F16 whose weights can be replaced.
pub(super) fn running_pair(checkpoint: &Path) -> Result<(Model, Model), Error> {
    let copy = Recipe::of(Base::F16);
    let running = crate::runtime::load_as(checkpoint, &copy, &cpu_options(), &mut |_, _| ())?;
    Ok((on_cpu(checkpoint)?, running))
}

fn cpu_options() -> ModelOptions {
    ModelOptions {
        devices: Some(Vec::new()),
        ..ModelOptions::default()
    }
}

/// Fits the layers of a plan to what the compressed layers before them give.
pub(super) fn fit_layers(
    bench: &Workbench<'_>,
    plan: &Plan,
    inputs: &Inputs<'_>,
    (text, options): (&Text, &FitOptions),
) -> Result<(Fitted, Vec<Unfitted>), Error> {
    let (original, running) = running_pair(bench.path)?;
    bench.progress.begin("fitting", 0, Unit::Items);
    let text = FitText {
        words: &text.words,
        options: options.clone(),
    };
    let reach = &mut |done, total| bench.progress.reach(done as u64, total as u64);
    let fitted = fit(plan, inputs, [&original, &running], &text, reach)?;
    bench.progress.end();
    Ok(fitted)
}
