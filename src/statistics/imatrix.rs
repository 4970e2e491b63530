//! Importance weights from the files that llama.cpp's `llama-imatrix` writes: the mean square of
//! every input column of each linear layer.

use std::collections::HashMap;
use std::path::Path;

use dwindle_formats::gguf::{GgufError, Header, TensorType, read_header};

use crate::llama::mapping::Mapping;

/// Why a file gives no importance weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum ImportanceError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("`{path}` is no importance file: {source}; make one with `llama-imatrix`")]
    Gguf { path: String, source: GgufError },
    #[error(
        "`{path}` is a GGUF file of type `{found}`, expected `imatrix` as `llama-imatrix` writes it"
    )]
    Kind { path: String, found: String },
    #[error("`{path}`: tensor `{tensor}`: {problem}")]
    Tensor {
        path: String,
        tensor: String,
        problem: String,
    },
}

/// Importance weights by tensor name. A stack of experts has one set of columns each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    columns: HashMap<String, Vec<f32>>,
}

impl Importance {
    /// Reads a file of llama-imatrix in its GGUF form.
    ///
    /// # Errors
    /// [`ImportanceError`].
    pub fn open(path: &Path) -> Result<Importance, ImportanceError> {
        let bytes = Mapping::open(path)?;
        let name = path.display().to_string();
        let header = read_header(&bytes).map_err(|source| ImportanceError::Gguf {
            path: name.clone(),
            source,
        })?;
        let kind = header.metadata.get("general.type").and_then(|v| v.as_str());
        if kind != Some("imatrix") {
            return Err(ImportanceError::Kind {
                path: name,
                found: kind.unwrap_or("model").to_string(),
            });
        }
        let mut columns = HashMap::new();
        for info in &header.tensors {
            let Some(tensor) = info.name.strip_suffix(".in_sum2") else {
                continue;
            };
            let means =
                means(&bytes, &header, tensor).map_err(|problem| ImportanceError::Tensor {
                    path: name.clone(),
                    tensor: tensor.to_string(),
                    problem,
                })?;
            columns.insert(tensor.to_string(), means);
        }
        Ok(Importance { columns })
    }

    /// Whether there are weights for a tensor with rows of this length.
    pub fn has(&self, tensor: &str, row_len: u64) -> bool {
        self.columns
            .get(tensor)
            .is_some_and(|c| !c.is_empty() && (c.len() as u64).is_multiple_of(row_len))
    }

    /// The weights of the columns of one slice (expert) of a tensor with rows of this length.
    /// Slices share one set of columns where only one is known.
    pub fn columns(&self, tensor: &str, row_len: usize, slice: usize) -> Option<&[f32]> {
        let all = self.columns.get(tensor)?;
        if !self.has(tensor, row_len as u64) {
            return None;
        }
        let start = if all.len() == row_len {
            0
        } else {
            slice * row_len
        };
        all.get(start..start + row_len)
    }

    /// The number of tensors with weights.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }
}

/// Sums of squares over counts; an expert that no token reached weighs every column alike.
fn means(bytes: &[u8], header: &Header, tensor: &str) -> Result<Vec<f32>, String> {
    let floats = |suffix: &str| {
        let name = format!("{tensor}.{suffix}");
        let info = header
            .tensor(&name)
            .ok_or_else(|| format!("`{name}` is missing"))?;
        if info.ty != TensorType::F32 {
            return Err(format!("`{name}` has type {}, expected F32", info.ty));
        }
        let (chunks, _) = bytes[header.data_range(info)].as_chunks::<4>();
        Ok(chunks
            .iter()
            .map(|c| f32::from_le_bytes(*c))
            .collect::<Vec<_>>())
    };
    let sums = floats("in_sum2")?;
    let counts = floats("counts")?;
    if counts.is_empty() || sums.len() % counts.len() != 0 {
        return Err(format!(
            "it has {} sums for {} counts, expected a multiple",
            sums.len(),
            counts.len()
        ));
    }
    let row_len = sums.len() / counts.len();
    let mut means = Vec::with_capacity(sums.len());
    for (sums, count) in sums.chunks(row_len).zip(&counts) {
        let mean = |s: &f32| if *count > 0.0 { s / count } else { 1.0 };
        means.extend(sums.iter().map(mean));
    }
    match means.iter().position(|v| !v.is_finite() || *v < 0.0) {
        Some(at) => Err(format!("column {at} has the mean square {}", means[at])),
        None => Ok(means),
    }
}
