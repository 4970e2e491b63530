//! GGUF files that llama.cpp opens by itself: their headers are read here first, and those of all
//! parts of a split file.

use std::path::{Path, PathBuf};

use dwindle_formats::gguf::{Header, read_header};

use super::{Described, Refusal, admit, admit_alignment, admit_factors};
use crate::llama::error::LlamaError;
use dwindle_mapped::Mapping;

/// Checks the file, or all parts of the split file, that this path names.
pub(in crate::llama) fn admit_file(path: &Path) -> Result<(), LlamaError> {
    let first = header(path)?;
    let mut others = Vec::new();
    for part in parts(path, &first) {
        // What is not there is llama.cpp's to miss.
        if part != path && part.exists() {
            others.push(header(&part)?);
        }
    }
    let headers = || std::iter::once(&first).chain(&others);
    let tensors = headers().flat_map(|header| &header.tensors);
    let described = tensors.map(|t| Described {
        name: &t.name,
        shape: &t.shape,
        ty: t.ty,
    });
    let aligned = headers().try_for_each(|header| admit_alignment(header.alignment));
    let refused = |source: Refusal| LlamaError::Refused {
        name: path.display().to_string(),
        source,
    };
    aligned.map_err(refused)?;
    admit(&first.metadata, described).map_err(refused)
}

/// Checks an adapter's file: llama.cpp checks its tensors' shapes against the model's.
pub(in crate::llama) fn admit_adapter(path: &Path) -> Result<(), LlamaError> {
    let header = header(path)?;
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

fn header(path: &Path) -> Result<Header, LlamaError> {
    let failed = |reason: String| LlamaError::Load {
        name: path.display().to_string(),
        reason,
    };
    let bytes = Mapping::open(path).map_err(|e| failed(e.to_string()))?;
    read_header(&bytes).map_err(|source| LlamaError::Gguf {
        name: path.display().to_string(),
        source,
    })
}

/// The files that llama.cpp opens for a split file: `name-00001-of-00003.gguf` and so on.
fn parts(path: &Path, first: &Header) -> Vec<PathBuf> {
    let count = first.metadata.get("split.count").and_then(|v| v.as_u64());
    let count = count.filter(|n| *n > 1 && *n <= u64::from(u16::MAX));
    let (Some(count), Some(name)) = (count, path.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let Some(stem) = name.strip_suffix(&format!("-00001-of-{count:05}.gguf")) else {
        return Vec::new();
    };
    let part = |number| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"));
    (1..=count).map(part).collect()
}
