//! The tensors of one file of weights.

use std::path::Path;

use dwindle_formats::pickle::{self, Elements};
use dwindle_mapped::Mapping;
use safetensors::tensor::{Dtype, SafeTensors, TensorInfo};

use crate::Error;
use crate::raw::Raw;
use crate::shards::Kind;

/// What transformers calls the output matrix.
const OUTPUT: &str = "lm_head.weight";

/// Whether a tensor is the output matrix under its second name: safetensors store a tied one once, PyTorch under both
/// names.
pub(crate) fn is_tied(raw: &Raw, all: &[Raw]) -> bool {
    let is_other = |other: &Raw| !other.name.ends_with(OUTPUT) && other.range == raw.range;
    raw.name.ends_with(OUTPUT) && all.iter().any(is_other)
}

/// The tensors of a file, sorted by name. `shard` is its place among the files.
///
/// # Errors
/// When it is damaged.
pub(crate) fn read(
    path: &Path,
    kind: Kind,
    map: &Mapping,
    shard: usize,
) -> Result<Vec<Raw>, Error> {
    let mut raws = match kind {
        Kind::Safetensors => safetensors(path, map, shard)?,
        Kind::Pickled => pickled(path, map, shard)?,
    };
    raws.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(raws)
}

fn safetensors(path: &Path, map: &Mapping, shard: usize) -> Result<Vec<Raw>, Error> {
    let (header_len, metadata) =
        SafeTensors::read_metadata(map).map_err(|e| Error::Safetensors {
            problem: explain(&e, map.len()),
            path: path.to_path_buf(),
        })?;
    let data_start = 8 + header_len;
    let raw = |(name, info): (String, &TensorInfo)| {
        let (start, end) = info.data_offsets;
        Raw {
            name,
            dtype: info.dtype,
            shape: info.shape.clone(),
            shard,
            // The crate has held these offsets against the shape and the length of the file.
            range: data_start + start..data_start + end,
        }
    };
    Ok(metadata.tensors().into_iter().map(raw).collect())
}

fn pickled(path: &Path, map: &Mapping, shard: usize) -> Result<Vec<Raw>, Error> {
    let tensors = pickle::read(map).map_err(|source| Error::Pickle {
        path: path.to_path_buf(),
        source,
    })?;
    let raws = tensors.into_iter().map(|tensor| Raw {
        dtype: dtype(tensor.elements),
        name: tensor.name,
        shape: tensor.shape,
        shard,
        range: tensor.range,
    });
    Ok(raws.collect())
}

fn dtype(elements: Elements) -> Dtype {
    match elements {
        Elements::Bool => Dtype::BOOL,
        Elements::U8 => Dtype::U8,
        Elements::I8 => Dtype::I8,
        Elements::I16 => Dtype::I16,
        Elements::I32 => Dtype::I32,
        Elements::I64 => Dtype::I64,
        Elements::F8E4M3 => Dtype::F8_E4M3,
        Elements::F8E5M2 => Dtype::F8_E5M2,
        Elements::F16 => Dtype::F16,
        Elements::BF16 => Dtype::BF16,
        Elements::F32 => Dtype::F32,
        Elements::F64 => Dtype::F64,
    }
}

/// The crate's error in words a user can act on.
fn explain(error: &safetensors::SafeTensorError, len: usize) -> String {
    use safetensors::SafeTensorError as E;
    match error {
        E::HeaderTooSmall => format!("it has {len} bytes, too few for a header"),
        E::HeaderTooLarge => "its header claims more than 100 MB".into(),
        E::InvalidHeaderLength => {
            format!("its header claims to reach past the end of the file at byte {len}")
        }
        E::MetadataIncompleteBuffer => {
            format!(
                "its tensors do not end where the file ends, at byte {len}; it is truncated or has bytes too many"
            )
        }
        E::InvalidHeader(_) | E::InvalidHeaderDeserialization(_) | E::JsonError(_) => {
            format!("its header can't be read ({error})")
        }
        E::InvalidOffset(name) => {
            format!("the data of tensor `{name}` overlaps another tensor or leaves a hole")
        }
        E::TensorInvalidInfo | E::ValidationOverflow | E::MisalignedSlice => {
            format!("the shape and the size of a tensor disagree ({error})")
        }
        other => other.to_string(),
    }
}
