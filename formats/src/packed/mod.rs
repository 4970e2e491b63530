//! Packed states (`.dwkv`): what a model keeps of a text, compressed, with a checksum for every byte.
//!
//! A header with the codec's settings and the state's description, then records of some cells each, which are written and
//! read one after another. What is in a record is the codec's affair. `STATES.md` is normative.

mod read;
mod write;

use std::ops::Range;

use crate::state::StateError;

pub use read::Packed;
pub use write::PackedWriter;

/// The four bytes that open every packed state.
pub const MAGIC: [u8; 4] = *b"DWKV";
/// The version that is read and written.
pub const VERSION: u32 = 1;
/// The most cells of a record, so that its length bounds the memory that it takes.
pub const MAX_CELLS: u32 = 1 << 12;
/// What stands where a record would begin, after the last one.
const END: u32 = u32::MAX;
/// Bytes of a checksum.
const DIGEST: usize = 32;
/// The longest settings.
const MAX_SETTINGS: usize = 1 << 20;
/// How much longer than its packed form a description may be.
const MAX_EXPANSION: u64 = 256;

/// Cells that stand in one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The section of the state.
    pub section: u32,
    /// The stream of the section.
    pub stream: u32,
    /// The first cell.
    pub first: u32,
    /// How many there are.
    pub cells: u32,
}

/// A record of a packed state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which cells it holds.
    pub place: Place,
    /// Where its payload is.
    pub range: Range<usize>,
}

/// Why bytes are no packed state.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum PackedError {
    #[error("it is no packed state: it does not begin with `DWKV`")]
    Magic,
    #[error("its version is {found}, expected {VERSION}; another dwindle wrote it")]
    Version { found: u32 },
    #[error("it ends early, at byte {at}")]
    Short { at: usize },
    #[error("the checksum of {what} differs: the file is damaged")]
    Checksum { what: String },
    #[error("{what} is damaged")]
    Damaged { what: &'static str },
    #[error("what it says of the state is damaged: {0}")]
    State(#[from] StateError),
}
