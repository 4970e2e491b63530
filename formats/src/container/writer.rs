//! Writing a file: chunks in order into a temporary sibling, a journal beside it, the header last,
//! then one rename.

use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use sha2::{Digest as _, Sha256};

use super::chunk::{ChunkGeometry, EncodedChunk};
use super::flusher::Flusher;
use super::journal::{FinishedTensor, Journal};
use super::{Codec, Digest, Part, StoredPlan, VERSION, key};
use crate::gguf::{
    Array, DEFAULT_ALIGNMENT, Metadata, TensorInfo, TensorType, Value, align_up, encode_header,
    header_len,
};

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The system refused; the message names the file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The plan breaks the specification.
    #[error("the plan can't be stored: {0}")]
    Plan(#[from] super::PlanError),
    /// Another process is writing the same file.
    #[error("`{0}` is being written by another process; wait for it, or choose another output")]
    Busy(PathBuf),
    /// The plan is larger than a file may be.
    #[error("the plan's sizes overflow 64 bits")]
    Overflow,
}

/// What the file will say of one finished part.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct FinishedPart {
    /// Id of each chunk's codec.
    pub codecs: Vec<u8>,
    /// Stored bytes of each chunk.
    pub bytes: Vec<u32>,
    /// Digest of each chunk, hexadecimal in the journal.
    #[serde(with = "super::journal::hex_digests")]
    pub digests: Vec<Digest>,
}

impl FinishedPart {
    pub fn stored(&self) -> u64 {
        self.bytes.iter().map(|n| u64::from(*n)).sum()
    }
}

/// Writes one file. Chunks are pushed in file order; nothing stands under the final name before
/// [`ContainerWriter::finish`].
///
/// A process that dies leaves the temporary file and its journal, from which a writer with the
/// same fingerprint goes on. A writer that is dropped unfinished, as after an error, removes both.
#[derive(Debug)]
pub struct ContainerWriter {
    destination: PathBuf,
    temporary: PathBuf,
    file: BufWriter<fs::File>,
    flusher: Option<Flusher>,
    journal: Journal,
    metadata: Metadata,
    plan: StoredPlan,
    data_start: u64,
    done: Vec<FinishedTensor>,
    parts: Vec<FinishedPart>,
    current: FinishedPart,
    finished: bool,
}

impl ContainerWriter {
    /// Begins a file, or goes on with one that a killed process left, if `fingerprint` (a digest
    /// of everything that decides the bytes) is the same.
    ///
    /// # Errors
    /// When the plan breaks the specification or the folder can't be written.
    pub fn create(
        destination: &Path,
        model: Metadata,
        plan: StoredPlan,
        fingerprint: &Digest,
    ) -> Result<ContainerWriter, WriteError> {
        plan.check()?;
        let temporary = sibling(destination, "part");
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&temporary)?;
        if file.file().try_lock().is_err() {
            return Err(WriteError::Busy(destination.to_path_buf()));
        }
        let metadata = with_digests(model, &plan, &placeholders(&plan), &[0; 32]);
        let data_start = align_up(
            header_len(
                &metadata,
                &infos(&plan, &placeholders(&plan)).ok_or(WriteError::Overflow)?,
            ),
            DEFAULT_ALIGNMENT,
        )
        .ok_or(WriteError::Overflow)?;

        let journal_path = sibling(destination, "journal");
        let (journal, done) = Journal::open(&journal_path, fingerprint, &plan)?;
        let (journal, done, end) =
            journal.keep_verified(done, &mut file, data_start, fingerprint)?;
        file.file().set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        Ok(ContainerWriter {
            destination: destination.to_path_buf(),
            temporary,
            flusher: Some(Flusher::of(&file)?),
            file: BufWriter::with_capacity(1 << 20, file),
            journal,
            metadata,
            plan,
            data_start,
            done,
            parts: Vec::new(),
            current: FinishedPart::empty(),
            finished: false,
        })
    }

    /// The number of tensors that an earlier, killed process has finished; they are not pushed
    /// again.
    pub fn resumed_tensors(&self) -> usize {
        self.done.len()
    }

    /// Appends the next chunk of the tensor at hand.
    ///
    /// # Errors
    /// When the system refuses to write.
    pub fn push(&mut self, chunk: EncodedChunk<'_>) -> Result<(), WriteError> {
        let part = &self.plan.tensors[self.done.len()].parts[self.parts.len()];
        let last = self.current.bytes.len() as u64 + 1 == ChunkGeometry::of(part).chunks();
        self.file.write_all(&chunk.stored)?;
        self.current.codecs.push(chunk.codec as u8);
        self.current.bytes.push(chunk.stored.len() as u32);
        let padding = if last {
            let stored = self.current.stored();
            stored.next_multiple_of(DEFAULT_ALIGNMENT) - stored
        } else {
            0
        };
        self.file
            .write_all(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize])?;
        if let Some(flusher) = &mut self.flusher {
            flusher.wrote(chunk.stored.len() as u64 + padding);
        }
        self.current.digests.push(chunk.digest(padding));
        if last {
            let finished = std::mem::replace(&mut self.current, FinishedPart::empty());
            self.parts.push(finished);
        }
        Ok(())
    }

    /// Closes the tensor at hand, whose chunks have all been pushed, with its relative error.
    ///
    /// # Errors
    /// When the system refuses to write.
    pub fn end_tensor(&mut self, error: f32) -> Result<(), WriteError> {
        debug_assert_eq!(
            self.parts.len(),
            self.plan.tensors[self.done.len()].parts.len()
        );
        let tensor = FinishedTensor {
            error_bits: error.to_bits(),
            parts: std::mem::take(&mut self.parts),
        };
        // The journal must not be ahead of the data it speaks of.
        self.file.flush()?;
        self.journal.append(&tensor)?;
        self.done.push(tensor);
        Ok(())
    }

    /// Writes the header, makes everything durable and gives the file its name. Returns its
    /// length in bytes.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn finish(mut self) -> Result<u64, WriteError> {
        let infos = infos(&self.plan, &self.done).ok_or(WriteError::Overflow)?;
        let metadata = std::mem::take(&mut self.metadata);
        let zeroed = with_digests(metadata, &self.plan, &self.done, &[0; 32]);
        let header = encode_header(&zeroed, &infos, DEFAULT_ALIGNMENT);
        debug_assert_eq!(header.len() as u64, self.data_start);
        let digest: Digest = Sha256::digest(&header).into();
        let signed = with_digests(zeroed, &self.plan, &self.done, &digest);
        let header = encode_header(&signed, &infos, DEFAULT_ALIGNMENT);

        let len = self.file.stream_position()?.max(self.data_start);
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header)?;
        self.file.flush()?;
        if let Some(flusher) = self.flusher.take() {
            flusher.finish()?;
        }
        self.file.get_ref().sync_all()?;
        fs::rename(&self.temporary, &self.destination)?;
        self.finished = true;
        self.journal.remove();
        sync_folder(&self.destination);
        Ok(len)
    }
}

impl Drop for ContainerWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Failing to clean up must not hide the error that led here.
            let _ = fs::remove_file(&self.temporary);
            self.journal.remove();
        }
    }
}

impl FinishedPart {
    pub(super) fn empty() -> FinishedPart {
        FinishedPart {
            codecs: Vec::new(),
            bytes: Vec::new(),
            digests: Vec::new(),
        }
    }
}

/// `.name.suffix` beside the destination, so that the rename stays on one file system.
fn sibling(destination: &Path, suffix: &str) -> PathBuf {
    let name = destination.file_name().unwrap_or_default();
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    hidden.push(suffix);
    destination.with_file_name(hidden)
}

/// Makes the rename durable where folders can be synced.
fn sync_folder(path: &Path) {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if let Ok(folder) = fs::File::open(folder) {
        let _ = folder.sync_all();
    }
}

/// Records of the right lengths for a plan of which nothing is written yet.
fn placeholders(plan: &StoredPlan) -> Vec<FinishedTensor> {
    let blank = |part: &Part| {
        let chunks = ChunkGeometry::of(part).chunks() as usize;
        FinishedPart {
            codecs: vec![0; chunks],
            bytes: vec![0; chunks],
            digests: vec![[0; 32]; chunks],
        }
    };
    plan.tensors
        .iter()
        .map(|t| FinishedTensor {
            error_bits: 0,
            parts: t.parts.iter().map(blank).collect(),
        })
        .collect()
}

/// GGUF's tensor list for what is stored.
fn infos(plan: &StoredPlan, done: &[FinishedTensor]) -> Option<Vec<TensorInfo>> {
    let mut offset = 0u64;
    let mut out = Vec::new();
    for (part, finished) in plan.parts().zip(done.iter().flat_map(|t| &t.parts)) {
        let stored = finished.stored();
        let raw = finished.codecs.iter().all(|c| *c == Codec::Raw as u8);
        let (ty, shape) = if raw {
            (part.ty, part.shape.clone())
        } else {
            let mut dims = vec![1; part.shape.len()];
            dims[0] = stored;
            (TensorType::I8, dims)
        };
        out.push(TensorInfo {
            name: part.name.clone(),
            shape,
            ty,
            offset,
        });
        offset = align_up(offset.checked_add(stored)?, DEFAULT_ALIGNMENT)?;
    }
    Some(out)
}

/// The model's metadata followed by the specification's keys.
fn with_digests(
    mut metadata: Metadata,
    plan: &StoredPlan,
    done: &[FinishedTensor],
    header: &Digest,
) -> Metadata {
    let parts = || done.iter().flat_map(|t| &t.parts);
    let json = serde_json::to_string(plan).expect("a plan holds nothing that JSON can't");
    metadata.set(key::VERSION, VERSION);
    metadata.set(
        key::PRODUCER,
        concat!("dwindle ", env!("CARGO_PKG_VERSION")),
    );
    metadata.set(key::PLAN, json);
    metadata.set(
        key::ERROR,
        done.iter()
            .map(|t| f32::from_bits(t.error_bits))
            .collect::<Vec<_>>(),
    );
    metadata.set(
        key::CODEC,
        parts().flat_map(|p| p.codecs.clone()).collect::<Vec<u8>>(),
    );
    metadata.set(
        key::CHUNK_BYTES,
        parts().flat_map(|p| p.bytes.clone()).collect::<Vec<u32>>(),
    );
    metadata.set(
        key::CHUNK_DIGEST,
        parts()
            .flat_map(|p| p.digests.concat())
            .collect::<Vec<u8>>(),
    );
    metadata.set(key::HEADER_DIGEST, Value::Array(Array::U8(header.to_vec())));
    metadata
}
