//! Running a checkpoint and its compressed copy side by side.

use std::path::Path;

use crate::fitting::{FitOptions, FitText, fit};
use crate::llama::model::{Model, ModelOptions};
use crate::plan::{Plan, Recipe};
use crate::runtime::Factors;
use crate::writing::{Fitted, Inputs};

use super::output::read_text;
use super::{Failure, progress};

/// The checkpoint as it is.
pub fn on_cpu(checkpoint: &Path) -> Result<Model, Failure> {
    let options = cpu_options();
    Ok(crate::runtime::load(
        checkpoint,
        &options,
        Factors::default(),
        &mut |_, _| (),
    )?)
}

/// The checkpoint, and a copy in F16 whose weights can be replaced.
pub fn running_pair(checkpoint: &Path) -> Result<(Model, Model), Failure> {
    let copy = Recipe::base("f16");
    let running = crate::runtime::load_as(checkpoint, &copy, &cpu_options(), &mut |_, _| ())?;
    Ok((on_cpu(checkpoint)?, running))
}

fn cpu_options() -> ModelOptions {
    ModelOptions {
        devices: Some(Vec::new()),
        ..ModelOptions::default()
    }
}

/// Runs the checkpoint and its compressed copy side by side.
pub fn fit_layers(
    options: &FitOptions,
    checkpoint: &Path,
    plan: &Plan,
    inputs: &Inputs<'_>,
    text: &Path,
) -> Result<Fitted, Failure> {
    let words = read_text(text)?;
    let (original, running) = running_pair(checkpoint)?;
    let bar = progress::count(0, "fitting");
    let fitted = fit(
        plan,
        inputs,
        [&original, &running],
        &FitText {
            words: &words,
            options: options.clone(),
        },
        &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        },
    )?;
    bar.finish_and_clear();
    Ok(fitted)
}
