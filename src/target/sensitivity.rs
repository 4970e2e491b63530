//! What an error of a tensor's output costs the model, measured.

use std::collections::HashMap;

use rayon::prelude::*;

use super::{BudgetError, Task, TensorCandidates};
use crate::architecture::{ModelTensor, role};
use crate::eval::{EvalOptions, Reference, cache_key, compare, write_reference};
use crate::ggml;
use crate::llama;
use crate::statistics::{Sensitivities, Sensitivity, digest};

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
    let mut known = HashMap::new();
    // Files may have their layers in another order.
    let mut in_order: Vec<usize> = (0..tensors.len()).collect();
    in_order.sort_by_key(|i| role(&tensors[*i].name).0);
    for i in in_order {
        let (_, role) = role(&tensors[i].name);
        let at = *known.entry(role).or_insert(roles.len());
        match roles.get_mut(at) {
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

/// A digest of what measurements of a model depend on beside the text: its tensors, of each of which
/// the first row stands for all, and the importance weights with which probes are rounded.
///
/// # Errors
/// Values that can't be read.
pub fn fingerprint(task: &Task<'_>) -> Result<String, BudgetError> {
    let mut bytes = Vec::new();
    for tensor in &task.subject.model.tensors {
        bytes.extend(tensor.name.as_bytes());
        bytes.extend(tensor.shape.iter().flat_map(|n| n.to_le_bytes()));
        let row = task
            .subject
            .rows(tensor, 0..1)
            .map_err(super::ggml(&tensor.name))?;
        let width = tensor.shape[0] as usize;
        let importance = task.subject.measured.importance;
        let columns = importance.and_then(|i| i.columns(&tensor.name, width, 0));
        let all = row.iter().chain(columns.unwrap_or_default());
        bytes.extend(all.flat_map(|v| v.to_le_bytes()));
    }
    Ok(digest(&bytes))
}

/// Measures the divergence that each group causes when its tensors are rounded to their probes'
/// types and all others stay, and adds it to `known`, where it is not there yet; `keep` is called with
/// every new one. `running` is the same model, loaded so that its weights can be replaced; they are as
/// before afterwards. Tensors that llama.cpp does not load cost nothing.
///
/// # Errors
/// A text that is too short, and whatever ends an evaluation.
pub fn measure(
    task: &Task<'_>,
    running: &llama::model::Model,
    tensors: &[TensorCandidates],
    groups: &[Vec<usize>],
    (text, options): (&str, &EvalOptions),
    known: &mut Sensitivities,
    keep: &mut dyn FnMut(&Sensitivities) -> std::io::Result<()>,
) -> Result<(), BudgetError> {
    let subject = &task.subject;
    let dir = tempfile::TempDir::new()?;
    let cache = dir.path().join("reference");
    let key = cache_key(b"sensitivity", text, options);
    let mut rounding = None;
    for group in groups {
        let names: Vec<String> = group.iter().map(|i| tensors[*i].name.clone()).collect();
        if known.of(&names).is_some() {
            continue;
        }
        let is_loaded = |i: &&usize| running.has_weight(&tensors[**i].name);
        let loaded: Vec<usize> = group.iter().filter(is_loaded).copied().collect();
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
        for i in &loaded {
            let tensor = &subject.model.tensors[tensors[*i].index];
            let rounded = probed(tensor, task, &tensors[*i])?;
            running.replace(&tensor.name, &rounded)?;
        }
        let (value, error) = kld()?;
        for i in &loaded {
            let tensor = &subject.model.tensors[tensors[*i].index];
            let original = subject.values(tensor);
            running.replace(&tensor.name, &original.map_err(super::ggml(&tensor.name))?)?;
            tensor.release(subject.source);
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
    task: &Task<'_>,
    candidates: &TensorCandidates,
) -> Result<Vec<f32>, BudgetError> {
    let ty = candidates.probe.ty;
    let failed = super::ggml(&tensor.name);
    let mut w = task.subject.values(tensor).map_err(&failed)?;
    let row = tensor.shape[0] as usize;
    let per_slice = tensor.shape[1] as usize * row;
    for (slice, w) in w.chunks_mut(per_slice).enumerate() {
        let importance = task.subject.measured.importance;
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
