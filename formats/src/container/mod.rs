//! The compressed container and the digests of every file that dwindle writes.
//!
//! `SPEC.md` beside this crate's manifest is normative; this module follows it.

mod chunk;
mod codec;
mod expansion;
mod file;
mod finished;
mod flusher;
mod form;
mod journal;
mod plan;
mod verify;
mod writer;

pub use chunk::{ChunkGeometry, EncodedChunk};
pub use codec::{Codec, CodecError};
pub use expansion::{EXPANSION, Expansion};
pub use file::{Container, ContainerError, is_container};
pub use form::{Form, Over};
pub use plan::{Part, PlanError, StoredPlan, StoredTensor, TENSORS_LIMIT};
pub use verify::{Damage, verify};
pub use writer::{ContainerWriter, WriteError, check_destination, plain_len, stock_len};

/// The version of the specification that is written and the highest that is read.
pub const VERSION: u32 = 1;

/// The metadata keys of the specification.
pub mod key {
    /// Version of the specification.
    pub const VERSION: &str = "dwindle.version";
    /// Program that wrote the file.
    pub const PRODUCER: &str = "dwindle.producer";
    /// JSON of [`super::StoredPlan`].
    pub const PLAN: &str = "dwindle.plan";
    /// Relative error of each tensor.
    pub const ERROR: &str = "dwindle.plan.error";
    /// Codec of each chunk.
    pub const CODEC: &str = "dwindle.chunk.codec";
    /// Stored bytes of each chunk.
    pub const CHUNK_BYTES: &str = "dwindle.chunk.bytes";
    /// Digest of each chunk.
    pub const CHUNK_DIGEST: &str = "dwindle.chunk.digest";
    /// Digest of the header; the last entry.
    pub const HEADER_DIGEST: &str = "dwindle.header.digest";
    /// All of them, in file order.
    pub const ALL: [&str; 8] = [
        VERSION,
        PRODUCER,
        PLAN,
        ERROR,
        CODEC,
        CHUNK_BYTES,
        CHUNK_DIGEST,
        HEADER_DIGEST,
    ];
}

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// Writes a digest as lower-case hexadecimal digits.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|b| format!("{b:02x}")).collect()
}
