//! Models as they run to be measured.

use std::path::Path;

use super::{Error, Workbench};
use crate::llama::model::{Model, ModelOptions};
use crate::llama::placement::Placement;
use crate::plan::{Base, Recipe};
use crate::runtime::{self, Factors};

/// A file or a checkpoint on devices of choice.
pub(super) fn load(path: &Path, placement: &Placement) -> Result<Model, Error> {
    let factors = Factors::default();
    let options = on(placement);
    Ok(runtime::load(path, &options, factors, &mut |_, _| ())?)
}

/// The checkpoint. A GGUF file is mapped.
pub(super) fn checkpoint(bench: &Workbench<'_>) -> Result<Model, Error> {
    if !bench.path.is_dir() {
        return load(bench.path, bench.placement);
    }
    let (recipe, options) = (Recipe::of(Base::Source), on(bench.placement));
    let loaded = runtime::load_from(
        bench.path,
        &bench.original,
        &recipe,
        &options,
        &mut |_, _| (),
    );
    Ok(loaded?)
}

/// The checkpoint, and a copy whose weights can be replaced.
pub(super) fn pair(bench: &Workbench<'_>) -> Result<(Model, Model), Error> {
    let options = on(bench.placement);
    let (path, subject) = (bench.path, &bench.original);
    let running = runtime::load_replaceable_from(path, subject, &options, &mut |_, _| ())?;
    Ok((checkpoint(bench)?, running))
}

fn on(placement: &Placement) -> ModelOptions {
    ModelOptions {
        placement: placement.clone(),
        ..ModelOptions::default()
    }
}
