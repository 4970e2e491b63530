//! Models as they run to be measured.

use std::path::Path;

use super::{Error, Workbench};
use crate::llama::model::{Model, ModelOptions};
use crate::llama::placement::Placement;
use crate::runtime::{self, Factors};

/// A file or a checkpoint on devices of choice.
pub(super) fn load(path: &Path, placement: &Placement) -> Result<Model, Error> {
    let factors = Factors::default();
    let options = on(placement);
    Ok(runtime::load(path, &options, factors, &mut |_, _| ())?)
}

/// The checkpoint, and a copy whose weights can be replaced.
pub(super) fn pair(bench: &Workbench<'_>) -> Result<(Model, Model), Error> {
    let options = on(bench.placement);
    let running = runtime::load_replaceable(bench.path, &options, &mut |_, _| ())?;
    Ok((load(bench.path, bench.placement)?, running))
}

fn on(placement: &Placement) -> ModelOptions {
    ModelOptions {
        placement: placement.clone(),
        ..ModelOptions::default()
    }
}
