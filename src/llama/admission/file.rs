//! GGUF files that llama.cpp opens by itself, all parts of a split model among them: their headers are read
//! here first.

use std::path::{Path, PathBuf};

use dwindle_formats::gguf::{GgufError, Header, read_header, read_part};

use super::{Described, Refusal, admit, admit_alignment, admit_factors};
use crate::llama::error::LlamaError;
use crate::llama::placement::Sizes;
use dwindle_mapped::Mapping;

/// Checks a file, or all parts of a split model, and gives what its blocks take.
pub(in crate::llama) fn admit_files(paths: &[PathBuf]) -> Result<Sizes, LlamaError> {
    let headers = paths.iter().map(|path| header(path, read_part));
    let headers: Vec<Header> = headers.collect::<Result<_, _>>()?;
    let tensors = headers.iter().flat_map(|header| &header.tensors);
    let described = tensors.map(|t| Described {
        name: &t.name,
        shape: &t.shape,
        ty: t.ty,
    });
    let aligned = headers
        .iter()
        .try_for_each(|header| admit_alignment(header.alignment));
    let refused = |source: Refusal| LlamaError::Refused {
        name: paths[0].display().to_string(),
        source,
    };
    aligned.map_err(refused)?;
    admit(&headers[0].metadata, described).map_err(refused)?;
    let tensors = headers.iter().flat_map(|header| &header.tensors);
    Ok(Sizes::of(tensors.map(|t| (t.name.as_str(), t.bytes()))))
}

/// Checks an adapter's file: llama.cpp checks its tensors' shapes against the model's.
pub(in crate::llama) fn admit_adapter(path: &Path) -> Result<(), LlamaError> {
    let header = header(path, read_header)?;
    let refused = |source: Refusal| LlamaError::Refused {
        name: path.display().to_string(),
        source,
    };
    admit_alignment(header.alignment).map_err(refused)?;
    let tensors = header.tensors.iter().map(|t| Described {
        name: &t.name,
        shape: &t.shape,
        ty: t.ty,
    });
    admit_factors(tensors).map_err(refused)
}

fn header(path: &Path, read: fn(&[u8]) -> Result<Header, GgufError>) -> Result<Header, LlamaError> {
    let failed = |reason: String| LlamaError::Load {
        name: path.display().to_string(),
        reason,
    };
    let bytes = Mapping::open(path).map_err(|e| failed(e.to_string()))?;
    read(&bytes).map_err(|source| LlamaError::Gguf {
        name: path.display().to_string(),
        source,
    })
}
