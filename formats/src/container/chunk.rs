//! Chunks: the unit of compression, digest and parallel work.

use std::borrow::Cow;
use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::{Codec, Digest, Part};
use crate::gguf::TensorType;

/// Decoded bytes that a chunk aims at.
const TARGET_BYTES: u64 = 1 << 20;

/// How the rows of a part fall into chunks. A function of shape and type alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkGeometry {
    /// Decoded bytes of a row.
    pub row_bytes: u64,
    /// Rows of the part.
    pub rows: u64,
    /// Rows of a chunk; the last may have fewer.
    pub chunk_rows: u64,
}

impl ChunkGeometry {
    /// The geometry of a part that has passed [`super::StoredPlan::check`].
    pub fn of(part: &Part) -> ChunkGeometry {
        let row_bytes = part.ty.bytes(&part.shape[..1]).unwrap_or(1).max(1);
        ChunkGeometry {
            row_bytes,
            rows: part.shape[1..].iter().product(),
            chunk_rows: (TARGET_BYTES / row_bytes).max(1),
        }
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u64 {
        self.rows.div_ceil(self.chunk_rows)
    }

    /// The rows of a chunk.
    pub fn rows_of(&self, chunk: u64) -> Range<u64> {
        let start = chunk * self.chunk_rows;
        start..(start + self.chunk_rows).min(self.rows)
    }

    /// Decoded bytes of a chunk.
    pub fn bytes_of(&self, chunk: u64) -> u64 {
        let rows = self.rows_of(chunk);
        (rows.end - rows.start) * self.row_bytes
    }
}

/// A chunk as it will stand in the file. Made on any thread; the writer adds the padding to the
/// digest, because only it knows where the part ends.
///
/// A chunk that is stored as it is may borrow its bytes from a mapped file.
#[derive(Debug, Clone)]
pub struct EncodedChunk<'a> {
    /// How it is stored.
    pub codec: Codec,
    /// Stored bytes without padding.
    pub stored: Cow<'a, [u8]>,
    /// Length after decoding.
    pub decoded_bytes: u64,
    hash: Sha256,
}

impl<'a> EncodedChunk<'a> {
    /// Stores decoded bytes as they are.
    pub fn raw(decoded: impl Into<Cow<'a, [u8]>>) -> EncodedChunk<'a> {
        let decoded = decoded.into();
        EncodedChunk::new(Codec::Raw, decoded.len(), decoded)
    }

    /// Stores decoded bytes of a type with the codec that suits them.
    pub fn compressed(ty: TensorType, decoded: impl Into<Cow<'a, [u8]>>) -> EncodedChunk<'a> {
        let decoded = decoded.into();
        match Codec::choose_and_encode(ty, &decoded) {
            Some((codec, stored)) => EncodedChunk::new(codec, decoded.len(), stored.into()),
            None => EncodedChunk::raw(decoded),
        }
    }

    fn new(codec: Codec, decoded_len: usize, stored: Cow<'a, [u8]>) -> EncodedChunk<'a> {
        let hash = Sha256::new_with_prefix(&stored);
        EncodedChunk {
            codec,
            stored,
            decoded_bytes: decoded_len as u64,
            hash,
        }
    }

    /// The digest over the stored bytes and `padding` zeros.
    pub(super) fn digest(self, padding: u64) -> Digest {
        finish_digest(self.hash, padding)
    }
}

fn finish_digest(mut hash: Sha256, padding: u64) -> Digest {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut left = padding as usize;
    while left > 0 {
        let n = left.min(ZEROS.len());
        hash.update(&ZEROS[..n]);
        left -= n;
    }
    hash.finalize().into()
}
