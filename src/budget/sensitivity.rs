//! What an error of a tensor's output costs the model, measured.

use rayon::prelude::*;

use super::{BudgetError, TensorCandidates};
use crate::architecture::{Model, ModelTensor, role, values};
use crate::checkpoint::Source;
use crate::eval::{EvalOptions, Reference, cache_key, compare, write_reference};
use crate::llama;
use crate::llama::ggml;
use crate::statistics::{Measured, Sensitivities, Sensitivity};

/// Rows that are rounded by one thread at a time.
const ROWS: usize = 256;

/// Which tensors are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// Neighbouring layers' tensors of one role, in so many groups a role.
    Neighbours(usize),
    /// Each for itself.
    Single,
}

/// Groups of positions in `tensors`, each of one role.
pub fn groups(tensors: &[TensorCandidates], grouping: Grouping) -> Vec<Vec<usize>> {
    let mut roles: Vec<(&str, Vec<usize>)> = Vec::new();
    // Files may have their layers in another order.
    let mut in_order: Vec<usize> = (0..tensors.len()).collect();
    in_order.sort_by_key(|i| role(&tensors[*i].name).0);
    for i in in_order {
        let (_, role) = role(&tensors[i].name);
        match roles.iter_mut().find(|(r, _)| *r == role) {
            Some((_, members)) => members.push(i),
            None => roles.push((role, vec![i])),
        }
    }
    let cut = |(_, members): (&str, Vec<usize>)| {
        let len = match grouping {
            Grouping::Single => 1,
            Grouping::Neighbours(n) => members.len().div_ceil(n.max(1)),
        };
        members
            .chunks(len)
            .map(<[usize]>::to_vec)
            .collect::<Vec<_>>()
    };
    roles.into_iter().flat_map(cut).collect()
}

/// Measures the divergence that each group causes when its tensors are rounded to their probes'
/// types and all others stay, and adds it to `known`, where it is not there yet; `keep` is called with
/// every new one. `running` is the same model, loaded so that its weights can be replaced; they are as
/// before afterwards.
///
/// # Errors
/// A text that is too short, and whatever ends an evaluation.
#[allow(clippy::too_many_arguments)] // two models, a text, and what to do with what is found
pub fn measure(
    model: &Model,
    source: &dyn Source,
    measured: &Measured<'_>,
    running: &llama::model::Model,
    tensors: &[TensorCandidates],
    groups: &[Vec<usize>],
    (text, options): (&str, &EvalOptions),
    known: &mut Sensitivities,
    keep: &mut dyn FnMut(&Sensitivities) -> std::io::Result<()>,
) -> Result<(), BudgetError> {
    let dir = tempfile::TempDir::new()?;
    let cache = dir.path().join("reference");
    let key = cache_key(b"sensitivity", text, options);
    let mut rounding = None;
    for group in groups {
        let names: Vec<String> = group.iter().map(|i| tensors[*i].name.clone()).collect();
        if known.of(&names).is_some() {
            keep(known)?;
            continue;
        }
        let kld = || -> Result<(f64, f64), BudgetError> {
            let reference = Reference::Cache(&cache, key);
            let found = compare(running, &reference, text, options, &mut |_| ())?;
            let kld = found.divergence.map(|d| d.kld);
            Ok(kld.map_or((0.0, 0.0), |k| (k.value, k.error)))
        };
        // The reference is rounded to 16 bits: what it is away from itself is no one's fault.
        let own = match rounding {
            Some(own) => own,
            None => {
                write_reference(running, text, options, &cache, key, &mut |_| ())?;
                *rounding.insert(kld()?.0)
            }
        };
        for i in group {
            let tensor = &model.tensors[tensors[*i].index];
            let rounded = probed(tensor, source, measured, &tensors[*i])?;
            running.replace(&tensor.name, &rounded)?;
        }
        let (value, error) = kld()?;
        for i in group {
            let tensor = &model.tensors[tensors[*i].index];
            let original = values(tensor, source, 0..tensor.row_count());
            running.replace(&tensor.name, &original.map_err(super::ggml(&tensor.name))?)?;
            tensor.release(source);
        }
        known.groups.push(Sensitivity {
            tensors: names,
            kld: (value - own).max(0.0),
            error,
        });
        keep(known)?;
    }
    Ok(())
}

/// A tensor as its probe's type holds it.
fn probed(
    tensor: &ModelTensor,
    source: &dyn Source,
    measured: &Measured<'_>,
    candidates: &TensorCandidates,
) -> Result<Vec<f32>, BudgetError> {
    let ty = candidates.probe.ty;
    let failed = super::ggml(&tensor.name);
    let mut w = values(tensor, source, 0..tensor.row_count()).map_err(&failed)?;
    let row = tensor.shape[0] as usize;
    let per_slice = tensor.shape[1] as usize * row;
    for (slice, w) in w.chunks_mut(per_slice).enumerate() {
        let importance = measured.importance;
        let importance = importance.and_then(|i| i.columns(&tensor.name, row, slice));
        w.par_chunks_mut(ROWS * row)
            .try_for_each(|w| {
                let len = ty.bytes(&[row as u64, (w.len() / row) as u64]);
                let mut bytes = vec![0; len.unwrap_or(0) as usize];
                ggml::quantize(ty, w, row, importance, &mut bytes)?;
                ggml::dequantize(ty, &bytes, w)
            })
            .map_err(&failed)?;
    }
    Ok(w)
}
