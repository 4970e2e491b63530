//! Reads the types of an existing file of a checkpoint as rules.

use std::path::Path;

use dwindle_formats::gguf::{TensorInfo, read_header, refuse_split};

use super::Error;
use crate::architecture::{Model, ModelTensor};
use crate::mapped::Mapping;
use crate::plan::Rule;

/// Rules that give each weight of a model the type that it has in a GGUF file.
pub(super) fn types_of(file: &Path, model: &Model) -> Result<Vec<Rule>, Error> {
    let bytes = Mapping::open(file)?;
    let unusable = |reason: String| Error::Unreadable {
        path: file.to_path_buf(),
        reason,
    };
    let header = refuse_split(file).and_then(|()| read_header(&bytes));
    let header = header.map_err(|e| unusable(e.to_string()))?;
    let weights = model.tensors.iter().filter(|t| t.is_weight());
    let rule = |tensor: &ModelTensor| match header.tensor(&tensor.name) {
        Some(found) if found.shape == tensor.shape => Ok(Rule::of_tensor(&found.name, found.ty)),
        found => Err(unusable(difference(tensor, found))),
    };
    weights.map(rule).collect()
}

fn difference(tensor: &ModelTensor, found: Option<&TensorInfo>) -> String {
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
