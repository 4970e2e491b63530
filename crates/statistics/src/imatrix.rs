//! Importance weights, the mean square of each input column of each linear layer: read from files
//! of `llama-imatrix` or from statistics, and written as such files.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use dwindle_formats::gguf::{
    DEFAULT_ALIGNMENT, GgufError, Header, Metadata, TensorLayout, TensorType, encode_header,
    lay_out, read_header,
};
use dwindle_formats::output::Draft;
use dwindle_mapped::Mapping;
use sha2::{Digest as _, Sha256};

use super::accumulate::Accumulator;
use super::layout::Group;
use super::reader::{Statistics, StatisticsError};

/// Why a file gives no importance weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum ImportanceError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("`{path}` is not an importance file: {source}")]
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
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
}

/// Importance weights by tensor name. A stack of experts has one set of columns each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    columns: HashMap<String, Vec<f32>>,
}

impl Importance {
    /// Reads a file of llama-imatrix in its GGUF form, or a statistics file.
    ///
    /// # Errors
    /// [`ImportanceError`].
    pub fn open(path: &Path) -> Result<Importance, ImportanceError> {
        let bytes = Mapping::open(path)?;
        // A safetensors file has the length of its header first, and then the header.
        if bytes.get(8) == Some(&b'{') {
            return Ok(Importance::from_statistics(&Statistics::open(path)?));
        }
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

    /// Weights by tensor name: of each slice's columns, or of all slices'.
    pub fn of(columns: HashMap<String, Vec<f32>>) -> Importance {
        Importance { columns }
    }

    /// The mean squares of all inputs.
    pub fn from_statistics(statistics: &Statistics) -> Importance {
        let mut columns = HashMap::new();
        for group in statistics.groups() {
            let mut means = Vec::with_capacity(group.slices * group.width);
            for slice in 0..group.slices {
                match (
                    statistics.tokens(group.name(), slice),
                    statistics.diagonal(group.name(), slice),
                ) {
                    (Some(1..), Some(diagonal)) => means.extend(diagonal),
                    _ => means.extend(vec![1.0; group.width]),
                }
            }
            for weight in &group.weights {
                columns.insert(weight.clone(), means.clone());
            }
        }
        Importance { columns }
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

    /// The weights of a model that was made smaller: of each tensor with rows of this length, under
    /// its new name, those of the part that it kept.
    pub fn of_kept<'a>(
        &self,
        tensors: impl Iterator<Item = (&'a str, usize, String, Part<'a>)>,
    ) -> Importance {
        let mut kept = HashMap::new();
        for (old, width, new, part) in tensors {
            let Some(all) = self.columns.get(old) else {
                continue;
            };
            let of_slice = |slice| self.columns(old, width, slice).unwrap_or(&[]);
            let columns = match part {
                Part::All => all.clone(),
                Part::Columns(lists) => {
                    let of_list = |(slice, list): (usize, &'a Vec<usize>)| {
                        let weights = of_slice(slice);
                        let weight = |c: &usize| weights.get(*c).copied().unwrap_or(1.0);
                        list.iter().map(weight).collect::<Vec<f32>>()
                    };
                    lists.iter().enumerate().flat_map(of_list).collect()
                }
                Part::Slices(slices) => {
                    let of_slices = slices.iter().flat_map(|s| of_slice(*s));
                    of_slices.copied().collect()
                }
            };
            kept.insert(new, columns);
        }
        Importance { columns: kept }
    }

    /// A digest of all weights.
    pub fn digest(&self) -> [u8; 32] {
        let mut sorted: Vec<_> = self.columns.iter().collect();
        sorted.sort_unstable_by_key(|(name, _)| *name);
        let mut hash = Sha256::new();
        for (name, weights) in sorted {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
            hash.update((weights.len() as u64).to_le_bytes());
            weights.iter().for_each(|w| hash.update(w.to_le_bytes()));
        }
        hash.finalize().into()
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

/// What a tensor of a smaller model kept.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// All columns of all slices.
    All,
    /// Some columns, a list for each slice.
    Columns(&'a [Vec<usize>]),
    /// Some slices.
    Slices(&'a [usize]),
}

/// What an importance file says of one weight.
pub struct Entry {
    weight: String,
    width: usize,
    /// Sums of squares, one slice after another.
    sums: Vec<f32>,
    /// Rows of each slice.
    counts: Vec<f32>,
}

/// What an importance file says of the run that it comes from.
pub struct Run<'a> {
    /// The name of the text.
    pub dataset: &'a str,
    /// Its chunks.
    pub chunks: usize,
    /// Tokens of a chunk.
    pub ctx: u32,
}

/// The entries of the weights in a group; those outside the blocks only with `output_layer`.
pub fn entries(group: &Group, sums: &Accumulator, output_layer: bool) -> Vec<Entry> {
    let weights = group.weights.iter();
    weights
        .filter(|w| output_layer || w.starts_with("blk."))
        .map(|weight| Entry {
            weight: weight.clone(),
            width: group.width,
            sums: (0..group.slices).flat_map(|s| sums.squares(s)).collect(),
            counts: sums.rows().map(|n| n as f32).collect(),
        })
        .collect()
}

/// Writes an importance file as llama-imatrix does: tensors sorted by name.
pub fn write(path: &Path, entries: &[Entry], run: &Run<'_>) -> std::io::Result<()> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|a, b| a.weight.cmp(&b.weight));
    let mut metadata = Metadata::new();
    metadata.set("general.type", "imatrix");
    metadata.set("imatrix.datasets", vec![run.dataset.to_string()]);
    metadata.set("imatrix.chunk_count", run.chunks as u32);
    metadata.set("imatrix.chunk_size", run.ctx);
    let mut layouts = Vec::new();
    for entry in &sorted {
        let slices = entry.counts.len() as u64;
        for (suffix, width) in [("in_sum2", entry.width as u64), ("counts", 1)] {
            layouts.push(TensorLayout {
                name: format!("{}.{suffix}", entry.weight),
                // ggml leaves out dimensions of one.
                shape: if slices == 1 {
                    vec![width]
                } else {
                    vec![width, slices]
                },
                ty: TensorType::F32,
            });
        }
    }
    let (infos, _) = lay_out(layouts, DEFAULT_ALIGNMENT)
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::FileTooLarge))?;
    let mut file = BufWriter::new(Draft::new(path)?);
    file.write_all(&encode_header(&metadata, &infos, DEFAULT_ALIGNMENT))?;
    for values in sorted.iter().flat_map(|e| [&e.sums, &e.counts]) {
        for v in values {
            file.write_all(&v.to_le_bytes())?;
        }
        let gap =
            (values.len() * 4).next_multiple_of(DEFAULT_ALIGNMENT as usize) - values.len() * 4;
        file.write_all(&vec![0; gap])?;
    }
    file.into_inner().map_err(|e| e.into_error())?.finish()
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
