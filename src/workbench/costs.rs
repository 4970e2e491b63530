//! What each type of each tensor costs, measured once and kept.

use std::path::PathBuf;

use dwindle_formats::gguf::TensorType;
use fs_err as fs;

use super::meter::context;
use super::{Choosing, Error, Text, Workbench};
use crate::eval::EvalOptions;
use crate::llama::model::ModelOptions;
use crate::measure::Experiment;
use crate::plan::{Base, Recipe};
use crate::progress::Unit;
use crate::statistics::{DiagnosisText, Identity, Sensitivities, digest};
use crate::target::{
    BudgetError, Costs, TYPES, TensorCandidates, bits_of, candidates, fingerprint, groups, measure,
};

/// From so many bits a weight on, types of less than two are left out: they take longest to try, and
/// none is chosen.
const AMPLE_BITS: f64 = 3.0;

fn types_for(least_bits: Option<f64>) -> Vec<TensorType> {
    let is_ample = least_bits.is_some_and(|bits| bits >= AMPLE_BITS);
    let wanted = TYPES.iter().filter(|ty| !is_ample || bits_of(**ty) >= 2.0);
    wanted.copied().collect()
}

/// What each type of each tensor costs, for files of so many bits a weight at least, where that is
/// known.
///
/// # Errors
/// Whatever ends a measurement.
pub fn costs(
    bench: &Workbench<'_>,
    choosing: &Choosing,
    text: &Text,
    least_bits: Option<f64>,
) -> Result<Costs, Error> {
    let types = match choosing.types.as_slice() {
        [] => types_for(least_bits),
        own => own.to_vec(),
    };
    let model = bench.subject.model;
    let tensors = model.tensors.len() as u64;
    bench.progress.begin("trying types", tensors, Unit::Items);
    let advance = || bench.progress.advance(1);
    let tensors = candidates(&bench.task(), &types, bench.options, &advance)?;
    bench.progress.end();
    let groups = groups(&tensors, choosing.effort.grouping());
    let about = DiagnosisText {
        name: text.name(),
        sha256: digest(text.words.as_bytes()),
        ctx: context(model),
        chunks: choosing.effort.chunks(),
    };
    let identity = Identity::of(model, bench.subject.source)?;
    let fingerprint = fingerprint(&bench.subject)?;
    let file = match &choosing.sensitivity {
        Some(file) => file.clone(),
        None => cache_file(&fingerprint, &about)?,
    };
    let mut known = Sensitivities::open(&file, identity, fingerprint, about)?;
    let is_new = |group: &&Vec<usize>| {
        let names: Vec<String> = group.iter().map(|i| tensors[*i].name.clone()).collect();
        known.of(&names).is_none()
    };
    let missing = groups.iter().filter(is_new).count();
    if missing > 0 {
        bench
            .progress
            .begin("measuring", missing as u64, Unit::Items);
        let chunks = choosing.effort.chunks();
        sensitivities(
            bench,
            (text, chunks),
            (&tensors, &groups),
            &mut known,
            &mut |known| {
                bench.progress.advance(1);
                known.write(&file)
            },
        )?;
        bench.progress.end();
    }
    Ok(Costs::new(tensors, &groups, &known))
}

/// Measures the groups that are not known.
fn sensitivities(
    bench: &Workbench<'_>,
    (text, chunks): (&Text, usize),
    (tensors, groups): (&[TensorCandidates], &[Vec<usize>]),
    known: &mut Sensitivities,
    keep: &mut dyn FnMut(&Sensitivities) -> std::io::Result<()>,
) -> Result<(), Error> {
    let options = EvalOptions {
        ctx: context(bench.subject.model),
        chunks: Some(chunks),
        ..EvalOptions::default()
    };
    let copy = Recipe::of(Base::F16);
    let model = ModelOptions::default();
    let running = crate::runtime::load_as(bench.path, &copy, &model, &mut |_, _| ())?;
    let words = (text.words.as_str(), &options);
    let mut experiment = Experiment::new(&running, bench.subject, words, bench.scratch);
    let subject = &bench.subject;
    measure(subject, &mut experiment, tensors, groups, known, keep).map_err(|e| match e {
        BudgetError::Eval(e) => text.blame(e),
        e => e.into(),
    })
}

/// Where sensitivities of a model on a text are kept, by the convention of the XDG base directories.
fn cache_file(model: &str, text: &DiagnosisText) -> Result<PathBuf, Error> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    let cache = var("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| var("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .ok_or(Error::NoCacheFolder)?;
    let folder = cache.join("dwindle");
    fs::create_dir_all(&folder)?;
    let key = format!("{model}{}{}", text.sha256, text.chunks);
    let key = digest(key.as_bytes());
    Ok(folder.join(format!("sensitivity-{}.json", &key[..16])))
}
