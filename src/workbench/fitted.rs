//! Runs a checkpoint and its compressed copy side by side.

use std::path::Path;

use super::surveyed::{scratch, sequences};
use super::{Error, FOLLOWING, Text, Workbench};
use crate::blockwise::{Places, Unfitted, fit};
use crate::fitting::FitOptions;
use crate::llama::model::{Model, ModelOptions};
use crate::plan::Plan;
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

/// The checkpoint, and a copy whose weights can be replaced.
pub(super) fn running_pair(checkpoint: &Path) -> Result<(Model, Model), Error> {
    let running = crate::runtime::load_replaceable(checkpoint, &cpu_options(), &mut |_, _| ())?;
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
    bench.progress.begin("fitting", 0, Unit::Items);
    let threads = bench.options.threads;
    let sequences = sequences(bench.subject.model, text, options.chunks, threads)?;
    let progress = bench.progress;
    let reach = &mut |done: u32, total: u32| progress.reach(done.into(), total.into());
    let scratch = scratch(
        bench.subject.model,
        &sequences,
        bench.options.memory,
        bench.scratch,
    );
    let places = Places {
        scratch,
        journal: None,
    };
    let fitted = fit(plan, inputs, &sequences, (FOLLOWING, places), reach)?;
    bench.progress.end();
    Ok(fitted)
}
