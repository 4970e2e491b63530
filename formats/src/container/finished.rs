//! What is known of tensors whose chunks are all written.

use serde::{Deserialize, Serialize};

use super::{Digest, hex};

/// A tensor whose chunks all stand in the temporary file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FinishedTensor {
    /// Bits of the relative error, an f32 that may be NaN.
    pub error_bits: u32,
    /// Its parts.
    pub parts: Vec<FinishedPart>,
}

/// What the file will say of one finished part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FinishedPart {
    /// Id of each chunk's codec.
    pub codecs: Vec<u8>,
    /// Stored bytes of each chunk.
    pub bytes: Vec<u32>,
    /// Digest of each chunk, hexadecimal in the journal.
    #[serde(with = "hex_digests")]
    pub digests: Vec<Digest>,
}

impl FinishedPart {
    pub fn empty() -> FinishedPart {
        FinishedPart {
            codecs: Vec::new(),
            bytes: Vec::new(),
            digests: Vec::new(),
        }
    }

    pub fn stored(&self) -> u64 {
        self.bytes.iter().map(|n| u64::from(*n)).sum()
    }
}

/// Digests as hexadecimal strings.
mod hex_digests {
    use super::{Digest, hex};
    use serde::{Deserialize, Deserializer, Serializer, de::Error, ser::SerializeSeq};

    pub fn serialize<S: Serializer>(digests: &[Digest], s: S) -> Result<S::Ok, S::Error> {
        let mut seq = s.serialize_seq(Some(digests.len()))?;
        for digest in digests {
            seq.serialize_element(&hex(digest))?;
        }
        seq.end()
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Digest>, D::Error> {
        let strings = Vec::<String>::deserialize(d)?;
        strings
            .iter()
            .map(|s| parse(s).ok_or_else(|| D::Error::custom("not a SHA-256 digest")))
            .collect()
    }

    fn parse(s: &str) -> Option<Digest> {
        let mut out = [0; 32];
        if s.len() != 64 || !s.is_ascii() {
            return None;
        }
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(out)
    }
}
