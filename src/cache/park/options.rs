//! Where texts are parked, and how.

use std::path::PathBuf;
use std::sync::Arc;

use super::super::files::Aim;
use crate::kv::codebook::Codebook;

/// Texts and beginnings of fewer tokens are sooner read again than found.
pub(super) const LEAST: usize = 32;

/// Receives what the user should know.
pub type Warn = Arc<dyn Fn(&str) + Send + Sync>;

/// Where texts are parked, and how they are packed.
pub struct ParkOptions {
    /// The most bytes in memory. Copies of a text that is being kept, packed or restored come beside.
    pub memory: u64,
    /// A folder that keeps them, too, and the most bytes in it.
    pub folder: Option<(PathBuf, u64)>,
    /// Distinguishes models: nothing is found in the folder that was parked with another key.
    pub model: String,
    /// The model's codebook, and what is aimed at with it. Without one, texts are packed bit by bit.
    pub codebook: Option<(Codebook, Aim)>,
    /// Receives warnings.
    pub warn: Warn,
}
