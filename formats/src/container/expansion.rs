//! Bounds how much larger than its file a model may be.
//!
//! A frame of zeros decodes to twenty thousand times its bytes, and two narrow factors multiply out
//! to a matrix of any size: each is useful, but not in a whole model. So the model is checked
//! against the length of the file before anything is decoded.

use super::{Form, Part, StoredPlan, StoredTensor, WriteError};
use crate::gguf::{DEFAULT_ALIGNMENT, limits};

/// The most decoded bytes for each byte of a file.
pub const EXPANSION: u64 = 1 << 10;

/// A model that is too large for its file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "its tensors decode to {decoded} bytes, which is more than {EXPANSION} times the {len} bytes of the file"
)]
pub struct Expansion {
    /// Bytes of the decoded tensors.
    pub decoded: u64,
    /// Bytes of the file.
    pub len: u64,
}

/// Checks a plan that has passed its check against the length of its file.
pub(super) fn check(plan: &StoredPlan, len: u64) -> Result<(), Expansion> {
    let decoded = plan.tensors.iter().map(decoded_bytes);
    let decoded = decoded.fold(0, u64::saturating_add);
    if decoded <= len.saturating_mul(EXPANSION) {
        Ok(())
    } else {
        Err(Expansion { decoded, len })
    }
}

/// What no reader would take, as far as it is known before anything is compressed.
pub(super) fn check_before_writing(
    plan: &StoredPlan,
    entries: usize,
    data_start: u64,
) -> Result<(), WriteError> {
    if entries as u64 > limits::METADATA_ENTRIES {
        return Err(WriteError::Entries { found: entries });
    }
    // Chunks are never stored in more bytes than they decode to.
    let parts = plan.parts().map(Part::bytes);
    let padded = parts.map(|bytes| bytes.saturating_add(DEFAULT_ALIGNMENT));
    Ok(check(plan, padded.fold(data_start, u64::saturating_add))?)
}

/// A tensor's parts, and beside factors the matrix of 16-bit elements that they make.
fn decoded_bytes(tensor: &StoredTensor) -> u64 {
    let parts = tensor.parts.iter().map(Part::bytes);
    let parts = parts.fold(0, u64::saturating_add);
    let elements = tensor
        .shape
        .iter()
        .fold(1, |all: u64, n| all.saturating_mul(*n));
    match tensor.form {
        Form::Dense => parts,
        _ => parts.saturating_add(elements.saturating_mul(2)),
    }
}
