//! The journal of an unfinished file: lists what is complete, so that a killed run can continue.
//!
//! One JSON object a line: first the fingerprint, then one finished tensor after another. Nothing
//! in it is trusted: on resumption the data is checked against the digests, and the first line that
//! does not fit ends what is kept.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use fs_err as fs;
use sha2::{Digest as _, Sha256};

use super::chunk::ChunkGeometry;
use super::finished::FinishedTensor;
use super::{Digest, StoredPlan, hex};
use crate::gguf::DEFAULT_ALIGNMENT;
use crate::output::open_own;

#[derive(Debug)]
pub(super) struct Journal {
    file: fs::File,
}

/// What a journal says before anything of it is checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claims {
    /// These tensors are finished.
    Finished(Vec<FinishedTensor>),
    /// It belongs to a run with another fingerprint.
    OfAnother,
}

impl Journal {
    /// Opens or begins the journal and returns what it claims.
    pub fn open(
        path: &Path,
        fingerprint: &Digest,
        plan: &StoredPlan,
    ) -> std::io::Result<(Journal, Claims)> {
        let file = open_own(path)?;
        let claims = read_claims(BufReader::new(&file), fingerprint, plan);
        Ok((Journal { file }, claims))
    }

    /// Checks the claimed tensors against the data, rewrites the journal with those that are true
    /// and returns them with the offset at which writing continues.
    pub fn keep_verified(
        mut self,
        claimed: Vec<FinishedTensor>,
        data: &mut fs::File,
        data_start: u64,
        fingerprint: &Digest,
    ) -> std::io::Result<(Journal, Vec<FinishedTensor>, u64)> {
        let mut at = data_start;
        let mut kept = Vec::new();
        for tensor in claimed {
            match verified_end(&tensor, data, at) {
                Some(end) => at = end,
                None => break,
            }
            kept.push(tensor);
        }
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        writeln!(self.file, "{}", hex(fingerprint))?;
        for tensor in &kept {
            self.append(tensor)?;
        }
        Ok((self, kept, at))
    }

    pub fn append(&mut self, tensor: &FinishedTensor) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(tensor)?;
        line.push(b'\n');
        self.file.write_all(&line)
    }
}

fn read_claims(mut lines: impl BufRead, fingerprint: &Digest, plan: &StoredPlan) -> Claims {
    let mut first = String::new();
    match lines.read_line(&mut first) {
        // Begun by this run, or killed before its first line.
        Ok(0) => return Claims::Finished(Vec::new()),
        Ok(_) if first.trim_end() == hex(fingerprint) => {}
        _ => return Claims::OfAnother,
    }
    let finished = lines
        .lines()
        .map_while(Result::ok)
        .map_while(|line| serde_json::from_str::<FinishedTensor>(&line).ok())
        .zip(&plan.tensors)
        .take_while(|(claim, tensor)| {
            claim.parts.len() == tensor.parts.len()
                && claim.parts.iter().zip(&tensor.parts).all(|(c, part)| {
                    let chunks = ChunkGeometry::of(part).chunks() as usize;
                    c.codecs.len() == chunks && c.bytes.len() == chunks && c.digests.len() == chunks
                })
        })
        .map(|(claim, _)| claim)
        .collect();
    Claims::Finished(finished)
}

/// Where the tensor's data ends, if all of it stands in the file as claimed.
fn verified_end(tensor: &FinishedTensor, data: &mut fs::File, start: u64) -> Option<u64> {
    let mut at = start;
    let mut buffer = Vec::new();
    for part in &tensor.parts {
        let padding = part.stored().next_multiple_of(DEFAULT_ALIGNMENT) - part.stored();
        for (i, (bytes, digest)) in part.bytes.iter().zip(&part.digests).enumerate() {
            let last = i + 1 == part.bytes.len();
            let len = u64::from(*bytes) + if last { padding } else { 0 };
            data.seek(SeekFrom::Start(at)).ok()?;
            buffer.clear();
            let read = Read::by_ref(data).take(len).read_to_end(&mut buffer).ok()?;
            let found: Digest = Sha256::digest(&buffer).into();
            if read as u64 != len || found != *digest {
                return None;
            }
            at += len;
        }
    }
    Some(at)
}
