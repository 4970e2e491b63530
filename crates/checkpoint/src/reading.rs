//! Reads whole files of a folder, each bounded by what it may be.

use std::path::Path;

use dwindle_formats::bounded::{self, limits};
use serde_json::Value;

use super::Error;

/// A file, or `None` when it is not there.
///
/// # Errors
/// When it can't be read.
pub(crate) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    Ok(bounded::read_if_there(path, limit_of(path))?)
}

/// How large a file of a checkpoint may be, by its name.
fn limit_of(path: &Path) -> u64 {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(index) if index.ends_with(".index.json") => limits::INDEX,
        Some(
            "tokenizer.json" | "tokenizer.model" | "added_tokens.json" | "merges.txt"
            | "vocab.json",
        ) => limits::VOCABULARY,
        _ => limits::CONFIGURATION,
    }
}

/// A file of JSON, or `None` when it is not there.
///
/// # Errors
/// When it can't be read or is not JSON.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>, Error> {
    let Some(bytes) = read_file(path)? else {
        return Ok(None);
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some(value)),
        Err(e) => Err(Error::Json {
            path: path.to_path_buf(),
            problem: e.to_string(),
        }),
    }
}
