//! Runs a checkpoint and its compressed copy side by side.

use super::surveyed::{scratch, sequences};
use super::{Error, FOLLOWING, Text, Workbench};
use crate::blockwise::{Places, Unfitted, fit};
use crate::fitting::FitOptions;
use crate::plan::Plan;
use crate::progress::Unit;
use crate::writing::{Fitted, Inputs};

/// Fits the layers of a plan to what the compressed layers before them give.
pub(super) fn fit_layers(
    bench: &Workbench<'_>,
    plan: &Plan,
    inputs: &Inputs<'_>,
    (text, options): (&Text, &FitOptions),
) -> Result<(Fitted, Vec<Unfitted>), Error> {
    bench.progress.begin("fitting", 0, Unit::Items);
    let sequences = sequences(bench, bench.subject.model, text, options.chunks)?;
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
