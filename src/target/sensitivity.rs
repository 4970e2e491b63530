//! Measures what an error of a tensor's output costs the model.

use std::collections::HashMap;

use dwindle_formats::container::hex;
use dwindle_formats::gguf::TensorType;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::{BudgetError, TensorCandidates};
use crate::architecture::{ModelTensor, role};
use crate::ggml;
use crate::measure::Experiment;
use crate::plan::{Subject, TensorError, TransformError};
use crate::statistics::{Importance, Sensitivities, Sensitivity};

/// Rows that are rounded by one thread at a time.
const ROWS: usize = 256;

/// Which tensors are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grouping {
    /// Neighbouring layers' tensors of one role, in this many groups per role.
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

/// Rows of a tensor that stand for all, from its first to its last.
const SAMPLED_ROWS: u64 = 16;

/// A digest of what measurements of a model depend on beside the text: its tensors, of each of
/// which some rows stand for all, and the importance weights with which probes are rounded.
///
/// # Errors
/// Values that can't be read.
pub fn fingerprint(subject: &Subject<'_>) -> Result<String, BudgetError> {
    let mut hash = Sha256::new();
    for tensor in &subject.model.tensors {
        hash.update((tensor.name.len() as u64).to_le_bytes());
        hash.update(&tensor.name);
        hash.update((tensor.shape.len() as u64).to_le_bytes());
        tensor
            .shape
            .iter()
            .for_each(|n| hash.update(n.to_le_bytes()));
        let rows = tensor.row_count();
        let count = SAMPLED_ROWS.min(rows);
        for i in 0..count {
            let row = i * (rows - 1) / (count - 1).max(1);
            let row = subject.rows(tensor, row..row + 1);
            let row = row.map_err(TensorError::of(&tensor.name))?;
            row.iter().for_each(|v| hash.update(v.to_le_bytes()));
        }
    }
    let importance = subject.measured.importance;
    hash.update(importance.map_or([0; 32], Importance::digest));
    Ok(hex(&hash.finalize()))
}

/// Measures the divergence that each group causes when its tensors are rounded to their probes'
/// types and all others stay, and adds it to `known`, where it is not there yet; `keep` is called
/// with every new one. Tensors that llama.cpp does not load cost nothing.
///
/// # Errors
/// A text that is too short, and whatever ends an evaluation.
pub fn measure<'a>(
    subject: &Subject<'a>,
    experiment: &mut Experiment<'a>,
    tensors: &[TensorCandidates],
    groups: &[Vec<usize>],
    known: &mut Sensitivities,
    keep: &mut dyn FnMut(&Sensitivities) -> std::io::Result<()>,
) -> Result<(), BudgetError> {
    for group in groups {
        let names: Vec<String> = group.iter().map(|i| tensors[*i].name.clone()).collect();
        if known.of(&names).is_some() {
            continue;
        }
        let probes: HashMap<&str, &TensorCandidates> = group
            .iter()
            .map(|i| (&*tensors[*i].name, &tensors[*i]))
            .collect();
        let members = group
            .iter()
            .map(|i| &subject.model.tensors[tensors[*i].index]);
        let members: Vec<&ModelTensor> = members.collect();
        let kld = experiment.divergence(&members, &|tensor| {
            probed(subject, tensor, probes[&*tensor.name].probe.ty)
        })?;
        known.groups.push(Sensitivity {
            tensors: names,
            kld: kld.value,
            error: kld.error,
        });
        keep(known)?;
    }
    Ok(())
}

/// A tensor as its probe's type holds it.
fn probed(
    subject: &Subject<'_>,
    tensor: &ModelTensor,
    ty: TensorType,
) -> Result<Vec<f32>, TransformError> {
    let mut w = subject.values(tensor)?;
    let row = tensor.shape[0] as usize;
    let per_slice = tensor.shape[1] as usize * row;
    for (slice, w) in w.chunks_mut(per_slice).enumerate() {
        let importance = subject.measured.importance;
        let importance = importance.and_then(|i| i.columns(&tensor.name, row, slice));
        w.par_chunks_mut(ROWS * row).try_for_each(|w| {
            let bytes = ggml::quantized(ty, w, row, importance)?;
            ggml::dequantize(ty, &bytes, w)
        })?;
    }
    Ok(w)
}
