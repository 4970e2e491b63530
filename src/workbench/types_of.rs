//! Reads the types of an existing file of a checkpoint as rules.

use std::collections::HashMap;
use std::path::Path;

use super::Error;
use crate::architecture::{Model, ModelTensor};
use crate::checkpoint::gguf::Gguf;
use crate::checkpoint::{Source as _, SourceTensor};
use crate::plan::Rule;

/// Rules that give each weight of a model the type that it has in a GGUF file.
pub(super) fn types_of(file: &Path, model: &Model) -> Result<Vec<Rule>, Error> {
    let unusable = |reason: String| Error::Unreadable {
        path: file.to_path_buf(),
        reason,
    };
    let found = Gguf::open(file).map_err(crate::architecture::Error::from)?;
    let all = found.tensors().iter();
    let by_name: HashMap<&str, &SourceTensor> = all.map(|t| (t.name.as_str(), t)).collect();
    let weights = model.tensors.iter().filter(|t| t.is_weight());
    let rule = |tensor: &ModelTensor| match by_name.get(tensor.name.as_str()).copied() {
        Some(found) if found.shape == tensor.shape => Ok(Rule::of_tensor(&found.name, found.ty)),
        found => Err(unusable(difference(tensor, found))),
    };
    weights.map(rule).collect()
}

fn difference(tensor: &ModelTensor, found: Option<&SourceTensor>) -> String {
    let found = found.map_or("is not there".to_string(), |t| {
        format!("is {}", shape(&t.shape))
    });
    format!(
        "tensor `{}` {found}, expected the checkpoint's {}; name a file that was made of this checkpoint",
        tensor.name,
        shape(&tensor.shape),
    )
}

fn shape(dims: &[u64]) -> String {
    let dims: Vec<String> = dims.iter().map(u64::to_string).collect();
    dims.join(" × ")
}
