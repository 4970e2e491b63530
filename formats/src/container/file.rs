//! Reads a file that dwindle wrote: checks first, then chunks on demand.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::chunk::ChunkGeometry;
use super::expansion::{self, Expansion};
use super::{Codec, CodecError, Digest, Part, PlanError, StoredPlan, VERSION, hex, key};
use crate::gguf::{
    Array, GgufError, Header, TensorInfo, TensorType, Value, is_rearranged, read_header, read_part,
};

/// Why a file is not one that dwindle wrote, or not whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum ContainerError {
    #[error(transparent)]
    Gguf(#[from] GgufError),
    #[error("the file has no dwindle checksums: another program wrote it")]
    Foreign,
    #[error("the key `{key}` is {problem}; the file is damaged")]
    Key {
        key: &'static str,
        problem: &'static str,
    },
    #[error(
        "the file has version {found}, this dwindle reads up to {VERSION}; use a newer dwindle"
    )]
    Version { found: u32 },
    #[error(
        "the header's checksum differs: expected {expected}, found {found}; the file is damaged"
    )]
    HeaderDigest { expected: String, found: String },
    #[error("the plan can't be read: {0}")]
    PlanJson(String),
    #[error("the plan contradicts itself: {0}")]
    Plan(#[from] PlanError),
    #[error("{0}; the file is damaged or hostile")]
    Expansion(#[from] Expansion),
    #[error("part `{part}`: {problem}; the file is damaged")]
    Part { part: String, problem: String },
    #[error("the padding {0} is not zero; the file is damaged or hides something")]
    Padding(String),
    #[error("the file has {found} bytes, its header describes {expected}")]
    Length { expected: u64, found: u64 },
    #[error(
        "tensor part `{part}`, chunk {chunk}: checksum differs: expected {expected}, found {found}"
    )]
    ChunkDigest {
        part: String,
        chunk: u64,
        expected: String,
        found: String,
    },
    #[error("tensor part `{part}`, chunk {chunk}: {source}")]
    Codec {
        part: String,
        chunk: u64,
        source: CodecError,
    },
}

/// Whether a header has any of the specification's keys, so that [`Container::read`] is due. A file that
/// llama-gguf-split has made has those of the file that it was made of, which say nothing of it.
pub fn is_container(header: &Header) -> bool {
    let mut keys = header.metadata.iter();
    keys.any(|(k, _)| k.starts_with("dwindle.")) && !is_rearranged(header)
}

/// One stored chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredChunk {
    pub codec: Codec,
    /// Stored bytes without padding, as file offsets.
    pub stored: Range<usize>,
    /// The same with the padding that the digest covers.
    pub hashed: Range<usize>,
    pub digest: Digest,
}

/// The checked structure of a container or a stock output of dwindle.
///
/// It borrows nothing: the bytes of the file are given again to each call that reads data.
#[derive(Debug, Clone)]
pub struct Container {
    /// GGUF's view of the file.
    pub header: Header,
    /// Every tensor and its parts.
    pub plan: StoredPlan,
    /// Relative error of each tensor of the plan.
    pub errors: Vec<f32>,
    parts: Vec<Part>,
    chunks: Vec<Vec<StoredChunk>>,
    /// The first part of each tensor, and the number of parts.
    first_parts: Vec<usize>,
    by_name: HashMap<String, usize>,
}

impl Container {
    /// Reads and checks everything but tensor data, whose digests are checked as it is read.
    ///
    /// # Errors
    /// Any deviation from the specification; [`ContainerError::Foreign`] for a GGUF file without
    /// dwindle's keys.
    pub fn read(bytes: &[u8]) -> Result<Container, ContainerError> {
        Container::of(read_header(bytes)?, bytes)
    }

    /// The same of a file that may be one part of several.
    ///
    /// # Errors
    /// As [`Container::read`].
    pub fn read_part(bytes: &[u8]) -> Result<Container, ContainerError> {
        Container::of(read_part(bytes)?, bytes)
    }

    fn of(header: Header, bytes: &[u8]) -> Result<Container, ContainerError> {
        if !is_container(&header) {
            return Err(ContainerError::Foreign);
        }
        check_version(&header)?;
        check_header_digest(bytes, &header)?;
        check_header_padding(bytes, &header)?;
        match header.metadata.get(key::PRODUCER) {
            Some(Value::String(_)) => {}
            other => return Err(bad_key(key::PRODUCER, other)),
        }
        let json = match header.metadata.get(key::PLAN) {
            Some(Value::String(json)) => json,
            other => return Err(bad_key(key::PLAN, other)),
        };
        let plan: StoredPlan =
            serde_json::from_str(json).map_err(|e| ContainerError::PlanJson(e.to_string()))?;
        plan.check()?;
        let errors = match header.metadata.get(key::ERROR) {
            Some(Value::Array(Array::F32(v))) if v.len() == plan.tensors.len() => v.clone(),
            other => return Err(bad_key(key::ERROR, other)),
        };
        let chunks = locate_chunks(&header, &plan, bytes.len() as u64)?;
        expansion::check(&plan, bytes.len() as u64)?;
        let mut first_parts = vec![0];
        let mut count = 0;
        for tensor in &plan.tensors {
            count += tensor.parts.len();
            first_parts.push(count);
        }
        Ok(Container {
            header,
            parts: plan.parts().cloned().collect(),
            by_name: (plan.tensors.iter().enumerate())
                .map(|(i, t)| (t.name.clone(), i))
                .collect(),
            plan,
            errors,
            chunks,
            first_parts,
        })
    }

    /// The digest of the header, which has the digests of all data: that of the whole file.
    pub fn digest(&self) -> Digest {
        let digest = match self.header.metadata.get(key::HEADER_DIGEST) {
            Some(Value::Array(Array::U8(bytes))) => bytes.as_slice().try_into().ok(),
            _ => None,
        };
        // `read` has refused files without it.
        digest.unwrap_or_default()
    }

    /// Whether the file is a GGUF that llama.cpp reads as it is: all tensors are whole and not compressed.
    pub fn is_stock(&self) -> bool {
        let tensors = self.plan.tensors.iter().enumerate();
        tensors.into_iter().all(|(i, tensor)| {
            let at = self.first_parts[i];
            tensor.form == super::Form::Dense
                && self.part(at).name == tensor.name
                && self.codecs(at).all(|codec| codec == Codec::Raw)
        })
    }

    /// Where a tensor stands in the plan.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// A part, by its number in the file.
    pub fn part(&self, part: usize) -> &Part {
        &self.parts[part]
    }

    /// The parts of a tensor of the plan.
    pub fn parts_of(&self, tensor: usize) -> Range<usize> {
        self.first_parts[tensor]..self.first_parts[tensor + 1]
    }

    /// Bytes that a part takes in the file, without padding.
    ///
    /// `part` counts over [`StoredPlan::parts`], here and below.
    pub fn stored_bytes(&self, part: usize) -> u64 {
        self.chunks[part]
            .iter()
            .map(|c| c.stored.len() as u64)
            .sum()
    }

    /// The codecs of a part's chunks.
    pub fn codecs(&self, part: usize) -> impl Iterator<Item = Codec> {
        self.chunks[part].iter().map(|c| c.codec)
    }

    /// The range of the file that a part takes, padding included.
    pub fn range(&self, part: usize) -> Range<usize> {
        match self.chunks[part].as_slice() {
            [first, .., last] => first.hashed.start..last.hashed.end,
            [only] => only.hashed.clone(),
            [] => 0..0,
        }
    }

    pub(super) fn chunks(&self) -> impl Iterator<Item = (&Part, &[StoredChunk])> {
        self.parts
            .iter()
            .zip(self.chunks.iter().map(|c| c.as_slice()))
    }

    /// Checks and decodes a part into its bytes, chunks in parallel.
    ///
    /// # Errors
    /// A chunk whose digest differs or that does not decode.
    pub fn decode(&self, bytes: &[u8], part: usize) -> Result<Vec<u8>, ContainerError> {
        let description = &self.parts[part];
        let geometry = ChunkGeometry::of(description);
        let mut out = zeros(description)?;
        let chunk_len = (geometry.chunk_rows * geometry.row_bytes) as usize;
        out.par_chunks_mut(chunk_len)
            .zip(&self.chunks[part])
            .enumerate()
            .try_for_each(|(i, (out, chunk))| {
                chunk.check(bytes, description, i as u64)?;
                chunk
                    .codec
                    .decode(description.ty, &bytes[chunk.stored.clone()], out)
                    .map_err(|source| ContainerError::Codec {
                        part: description.name.clone(),
                        chunk: i as u64,
                        source,
                    })
            })?;
        Ok(out)
    }
}

impl StoredChunk {
    /// Checks the chunk's bytes against its digest.
    pub fn check(&self, bytes: &[u8], part: &Part, index: u64) -> Result<(), ContainerError> {
        let found: Digest = Sha256::digest(&bytes[self.hashed.clone()]).into();
        if found != self.digest {
            return Err(ContainerError::ChunkDigest {
                part: part.name.clone(),
                chunk: index,
                expected: hex(&self.digest),
                found: hex(&found),
            });
        }
        if bytes[self.stored.end..self.hashed.end]
            .iter()
            .any(|b| *b != 0)
        {
            return Err(ContainerError::Padding(format!("of part `{}`", part.name)));
        }
        Ok(())
    }
}

/// Memory for a decoded part. A few stored bytes may claim more than there is: that must end in an
/// error and not in an abort.
fn zeros(part: &Part) -> Result<Vec<u8>, ContainerError> {
    let len = part.bytes() as usize;
    let mut probe = Vec::<u8>::new();
    let reserved = probe.try_reserve_exact(len);
    // Otherwise the compiler may leave out an allocation that nobody uses.
    drop(std::hint::black_box(probe));
    match reserved {
        Ok(()) => Ok(vec![0; len]),
        Err(_) => Err(ContainerError::Part {
            part: part.name.clone(),
            problem: format!("it claims {len} decoded bytes, more than can be allocated"),
        }),
    }
}

fn bad_key(key: &'static str, value: Option<&Value>) -> ContainerError {
    let problem = match value {
        None => "missing",
        Some(_) => "of the wrong type or length",
    };
    ContainerError::Key { key, problem }
}

fn check_version(header: &Header) -> Result<(), ContainerError> {
    match header.metadata.get(key::VERSION) {
        Some(Value::U32(v)) if (1..=VERSION).contains(v) => Ok(()),
        Some(Value::U32(found)) => Err(ContainerError::Version { found: *found }),
        other => Err(bad_key(key::VERSION, other)),
    }
}

fn check_header_digest(bytes: &[u8], header: &Header) -> Result<(), ContainerError> {
    let last = header.metadata.iter().last();
    let Some((key::HEADER_DIGEST, Value::Array(Array::U8(expected)))) = last else {
        return Err(ContainerError::Key {
            key: key::HEADER_DIGEST,
            problem: "not the last metadata entry",
        });
    };
    if expected.len() != 32 {
        return Err(bad_key(
            key::HEADER_DIGEST,
            header.metadata.get(key::HEADER_DIGEST),
        ));
    }
    let data_start = header.data_start.min(bytes.len() as u64) as usize;
    // The value is an array: its type, its count, then the 32 bytes.
    let value_end = header.value_ranges.last().map_or(0, |r| r.end);
    let digest_start = value_end - 32;
    let mut hash = Sha256::new();
    hash.update(&bytes[..digest_start]);
    hash.update([0; 32]);
    hash.update(&bytes[value_end..data_start]);
    let found: Digest = hash.finalize().into();
    if found[..] == expected[..] {
        return Ok(());
    }
    Err(ContainerError::HeaderDigest {
        expected: hex(expected),
        found: hex(&found),
    })
}

fn check_header_padding(bytes: &[u8], header: &Header) -> Result<(), ContainerError> {
    let end = (bytes.len() as u64).min(header.data_start) as usize;
    match bytes[header.header_end as usize..end]
        .iter()
        .all(|b| *b == 0)
    {
        true => Ok(()),
        false => Err(ContainerError::Padding("of the header".into())),
    }
}

/// Finds every chunk's bytes and checks GGUF's tensor list against the plan.
fn locate_chunks(
    header: &Header,
    plan: &StoredPlan,
    file_len: u64,
) -> Result<Vec<Vec<StoredChunk>>, ContainerError> {
    let mut table = chunk_table(header, plan)?;
    if header.tensors.len() != plan.parts().count() {
        return Err(ContainerError::PlanJson(format!(
            "it has {} parts, the file {}",
            plan.parts().count(),
            header.tensors.len()
        )));
    }

    let mut located = Vec::with_capacity(header.tensors.len());
    let mut end = header.data_start;
    for (index, (part, info)) in plan.parts().zip(&header.tensors).enumerate() {
        let region = (header.data_start + info.offset)
            ..header
                .tensors
                .get(index + 1)
                .map_or(padded_end(header, info), |n| header.data_start + n.offset);
        end = region.end;
        if region.end > file_len {
            break; // the length check below says so
        }
        let chunks = table
            .by_ref()
            .take(ChunkGeometry::of(part).chunks() as usize);
        located.push(locate_part(part, info, region, chunks).map_err(|problem| {
            ContainerError::Part {
                part: part.name.clone(),
                problem,
            }
        })?);
    }
    if end != file_len {
        return Err(ContainerError::Length {
            expected: end,
            found: file_len,
        });
    }
    Ok(located)
}

/// Codec, length and digest of every chunk, as many as the plan has.
fn chunk_table<'a>(
    header: &'a Header,
    plan: &StoredPlan,
) -> Result<impl Iterator<Item = ((&'a u8, &'a u32), &'a Digest)>, ContainerError> {
    let get = |key| header.metadata.get(key);
    let codecs = match get(key::CODEC) {
        Some(Value::Array(Array::U8(v))) => v,
        other => return Err(bad_key(key::CODEC, other)),
    };
    let lengths = match get(key::CHUNK_BYTES) {
        Some(Value::Array(Array::U32(v))) => v,
        other => return Err(bad_key(key::CHUNK_BYTES, other)),
    };
    let digests = match get(key::CHUNK_DIGEST) {
        Some(Value::Array(Array::U8(v))) if v.len() % 32 == 0 => v.as_chunks::<32>().0,
        other => return Err(bad_key(key::CHUNK_DIGEST, other)),
    };
    // Counted before anything is allocated by a count that the plan claims.
    let claimed = plan.parts().try_fold(0u64, |acc, p| {
        acc.checked_add(ChunkGeometry::of(p).chunks())
    });
    let counted = lengths.len() as u64;
    if claimed != Some(counted) || codecs.len() != lengths.len() || digests.len() != lengths.len() {
        return Err(bad_key(key::CHUNK_BYTES, get(key::CHUNK_BYTES)));
    }
    Ok(codecs.iter().zip(lengths).zip(digests))
}

fn padded_end(header: &Header, info: &TensorInfo) -> u64 {
    header.data_start + (info.offset + info.bytes()).next_multiple_of(header.alignment)
}

fn locate_part<'a>(
    part: &Part,
    info: &TensorInfo,
    region: Range<u64>,
    chunks: impl Iterator<Item = ((&'a u8, &'a u32), &'a Digest)>,
) -> Result<Vec<StoredChunk>, String> {
    if info.name != part.name {
        return Err(format!("the file lists `{}` in its place", info.name));
    }
    let geometry = ChunkGeometry::of(part);
    let mut out = Vec::new();
    let mut at = region.start;
    let mut raw = true;
    for (index, ((codec, len), digest)) in chunks.enumerate() {
        let codec = Codec::from_id(*codec).map_err(|e| e.to_string())?;
        codec.applies_to(part.ty).map_err(|e| e.to_string())?;
        raw &= codec == Codec::Raw;
        let decoded = geometry.bytes_of(index as u64);
        let len = u64::from(*len);
        let fits = if codec == Codec::Raw {
            len == decoded
        } else {
            len <= decoded
        };
        let last = index as u64 + 1 == geometry.chunks();
        let end = at.checked_add(len).filter(|end| *end <= region.end);
        let (true, Some(end)) = (fits, end) else {
            return Err(format!(
                "chunk {index} has {len} stored bytes for {decoded} decoded ones"
            ));
        };
        let hashed_end = if last { region.end } else { end };
        out.push(StoredChunk {
            codec,
            stored: at as usize..end as usize,
            hashed: at as usize..hashed_end as usize,
            digest: *digest,
        });
        at = end;
    }
    let stored = at - region.start;
    let listed = if raw {
        info.ty == part.ty && info.shape == part.shape
    } else {
        info.ty == TensorType::I8
            && info.shape.len() == part.shape.len()
            && info.shape[0] == stored
            && info.shape[1..].iter().all(|n| *n == 1)
    };
    if !listed || info.bytes() != stored {
        return Err(format!(
            "the file lists {} {:?}, the plan {} {:?} in {stored} stored bytes",
            info.ty, info.shape, part.ty, part.shape
        ));
    }
    Ok(out)
}
