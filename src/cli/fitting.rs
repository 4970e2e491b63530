//! Running a checkpoint and its compressed copy side by side.

use std::path::Path;

use super::output::read_text;
use super::{Failure, progress};
use crate::fitting::{FitOptions, FitText, Reason, Unfitted, fit};
use crate::llama::model::{Model, ModelOptions};
use crate::plan::{Plan, Recipe};
use crate::runtime::Factors;
use crate::writing::{Fitted, Inputs};

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
) -> Result<(Fitted, Vec<Unfitted>), Failure> {
    let words = read_text(text)?;
    let (original, running) = running_pair(checkpoint)?;
    let bar = progress::count(0, "fitting");
    let (fitted, unfitted) = fit(
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
    warn_of_unfitted(&unfitted);
    Ok((fitted, unfitted))
}

/// Says what was not fitted, of layers that differ only in their number once.
pub fn warn_of_unfitted(unfitted: &[Unfitted]) {
    let mut told: Vec<(&Unfitted, usize)> = Vec::new();
    for one in unfitted {
        match told
            .iter_mut()
            .find(|(o, _)| (o.width, o.reason) == (one.width, one.reason))
        {
            Some((_, weights)) => *weights += one.weights.len(),
            None => told.push((one, one.weights.len())),
        }
    }
    for (one, weights) in told {
        let others = match weights - 1 {
            0 => String::new(),
            n => format!(" and {n} more with inputs of {} elements", one.width),
        };
        let advice = match one.reason {
            Reason::TooFewTokens { .. } => "; name a longer text, or evaluate more chunks of it",
            _ => "",
        };
        eprintln!(
            "warning: `{}`{others}: not fitted to the layers before, because {}{advice}",
            one.weights.first().map_or("", String::as_str),
            one.reason,
        );
    }
}
