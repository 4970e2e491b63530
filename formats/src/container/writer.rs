//! Writes a file: chunks in order into a temporary sibling, a journal beside it, the header last,
//! then one rename.

use std::fs::{Permissions, TryLockError};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;
use sha2::{Digest as _, Sha256};

use super::chunk::{ChunkGeometry, EncodedChunk};
use super::expansion;
use super::finished::{FinishedPart, FinishedTensor};
use super::flusher::Flusher;
use super::journal::{Claims, Journal};
use super::{Codec, Digest, Part, StoredPlan, VERSION, key};
use crate::gguf::{
    Array, DEFAULT_ALIGNMENT, Metadata, TensorInfo, TensorType, Value, align_up, encode_header,
    header_len, limits,
};
use crate::output::{
    PlaceError, check_place, is_named, open_own, permissions_of, sibling, sync_folder,
};

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The place does not suit.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The system refused.
    #[error("`{}` can't be written: {problem}", path.display())]
    Destination {
        /// The file that was to be written.
        path: PathBuf,
        /// What stands against it.
        problem: String,
    },
    /// The plan breaks the specification.
    #[error("the plan can't be stored: {0}")]
    Plan(#[from] super::PlanError),
    /// Another process is writing the same file.
    #[error("`{}` is being written by another process; wait for it, or choose another output", .0.display())]
    Busy(PathBuf),
    /// More metadata than a reader takes.
    #[error("the file would have {found} metadata entries, the limit is {limit}", limit = limits::METADATA_ENTRIES)]
    Entries {
        /// How many there are.
        found: usize,
    },
    /// No reader would take the file.
    #[error("the file would be refused: {0}; keep higher ranks or more values")]
    Expansion(#[from] super::Expansion),
    /// The plan is larger than a file may be.
    #[error("the plan's sizes overflow 64 bits")]
    Overflow,
}

/// Writes one file. Chunks are pushed in file order; nothing stands under the final name before
/// [`ContainerWriter::finish`].
///
/// After a killed process the temporary file and its journal remain, from which a writer with the
/// same fingerprint continues. A writer that is dropped unfinished, as after an error, removes
/// both.
#[derive(Debug)]
pub struct ContainerWriter {
    // Dropped first, while the file is still locked.
    leftovers: Leftovers,
    destination: PathBuf,
    /// What the file has that is replaced.
    permissions: Option<Permissions>,
    file: BufWriter<fs::File>,
    flusher: Option<Flusher>,
    journal: Journal,
    metadata: Metadata,
    plan: StoredPlan,
    data_start: u64,
    began_anew: bool,
    done: Vec<FinishedTensor>,
    parts: Vec<FinishedPart>,
    current: FinishedPart,
}

impl ContainerWriter {
    /// Begins a file, or continues with one that a killed process left, if `fingerprint` (a digest
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
        check_destination(destination)?;
        let metadata = with_digests(model, &plan, &placeholders(&plan), &[0; 32]);
        let data_start = data_start(&metadata, &plan).ok_or(WriteError::Overflow)?;
        expansion::check_before_writing(&plan, metadata.len(), data_start)?;

        let refused = |e: io::Error| refused(destination, &e);
        let mut file = lock(destination)?;
        let permissions = permissions_of(destination);
        if permissions.is_some() {
            make_private(&file).map_err(refused)?;
        }
        let temporary = sibling(destination, "part");
        let journal_path = sibling(destination, "journal");
        let (journal, claims) = Journal::open(&journal_path, fingerprint, &plan).map_err(|e| {
            // What stands in the journal's place is not ours to remove.
            let _ = fs::remove_file(&temporary);
            refused(e)
        })?;
        let leftovers = Leftovers {
            temporary,
            journal: journal_path,
            renamed: false,
        };
        let (done, began_anew) = match claims {
            Claims::Finished(done) => (done, false),
            Claims::OfAnother => (Vec::new(), true),
        };
        let (journal, done, end) = journal
            .keep_verified(done, &mut file, data_start, fingerprint)
            .map_err(refused)?;
        file.file()
            .set_len(end)
            .and_then(|()| file.seek(SeekFrom::Start(end)))
            .map_err(refused)?;
        Ok(ContainerWriter {
            leftovers,
            destination: destination.to_path_buf(),
            permissions,
            flusher: Some(Flusher::of(&file).map_err(refused)?),
            file: BufWriter::with_capacity(1 << 20, file),
            journal,
            metadata,
            plan,
            data_start,
            began_anew,
            done,
            parts: Vec::new(),
            current: FinishedPart::empty(),
        })
    }

    /// The number of tensors that an earlier, killed process has finished; they are not pushed
    /// again.
    pub fn resumed_tensors(&self) -> usize {
        self.done.len()
    }

    /// Whether a killed process has left an unfinished file of another plan, checkpoint or version,
    /// which this one replaces.
    pub fn began_anew(&self) -> bool {
        self.began_anew
    }

    /// The relative error of a tensor that is finished.
    pub fn error(&self, tensor: usize) -> Option<f32> {
        Some(f32::from_bits(self.done.get(tensor)?.error_bits))
    }

    /// Appends the next chunk of the tensor at hand.
    ///
    /// # Errors
    /// When the system refuses to write.
    pub fn push(&mut self, chunk: EncodedChunk<'_>) -> Result<(), WriteError> {
        let part = &self.plan.tensors[self.done.len()].parts[self.parts.len()];
        let last = self.current.bytes.len() as u64 + 1 == ChunkGeometry::of(part).chunks();
        self.current.codecs.push(chunk.codec as u8);
        self.current.bytes.push(chunk.stored.len() as u32);
        let padding = if last {
            let stored = self.current.stored();
            stored.next_multiple_of(DEFAULT_ALIGNMENT) - stored
        } else {
            0
        };
        self.file
            .write_all(&chunk.stored)
            .and_then(|()| {
                self.file
                    .write_all(&[0; DEFAULT_ALIGNMENT as usize][..padding as usize])
            })
            .map_err(|e| refused(&self.destination, &e))?;
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
        // The journal must not be ahead of its data.
        self.file
            .flush()
            .and_then(|()| self.journal.append(&tensor))
            .map_err(|e| refused(&self.destination, &e))?;
        self.done.push(tensor);
        Ok(())
    }

    /// Writes the header, makes everything durable and gives the file its name. Returns its
    /// length in bytes.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn finish(mut self) -> Result<u64, WriteError> {
        let len = self.file.stream_position();
        let len = len.map_err(|e| refused(&self.destination, &e))?;
        expansion::check(&self.plan, len)?;
        let infos = infos(&self.plan, &self.done).ok_or(WriteError::Overflow)?;
        let metadata = std::mem::take(&mut self.metadata);
        let zeroed = with_digests(metadata, &self.plan, &self.done, &[0; 32]);
        let header = encode_header(&zeroed, &infos, DEFAULT_ALIGNMENT);
        debug_assert_eq!(header.len() as u64, self.data_start);
        let digest: Digest = Sha256::digest(&header).into();
        let signed = with_digests(zeroed, &self.plan, &self.done, &digest);
        let header = encode_header(&signed, &infos, DEFAULT_ALIGNMENT);

        let len = self
            .complete(&header)
            .map_err(|e| refused(&self.destination, &e))?;
        sync_folder(&self.destination);
        Ok(len)
    }

    fn complete(&mut self, header: &[u8]) -> io::Result<u64> {
        let len = self.file.stream_position()?.max(self.data_start);
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(header)?;
        self.file.flush()?;
        if let Some(flusher) = self.flusher.take() {
            flusher.finish()?;
        }
        if let Some(permissions) = self.permissions.take() {
            self.file.get_ref().set_permissions(permissions)?;
        }
        self.file.get_ref().sync_all()?;
        // While the lock still keeps other writers away from the journal's name.
        self.leftovers.remove_journal();
        fs::rename(&self.leftovers.temporary, &self.destination)?;
        self.leftovers.renamed = true;
        Ok(len)
    }
}

/// Files beside the destination that must not outlive the writer, finished or not.
#[derive(Debug)]
struct Leftovers {
    temporary: PathBuf,
    journal: PathBuf,
    /// Nothing is left; whatever has the temporary name now is another writer's.
    renamed: bool,
}

impl Leftovers {
    fn remove_journal(&self) {
        // A journal that stays behind only costs the next run a look at it.
        let _ = fs::remove_file(&self.journal);
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        if !self.renamed {
            self.remove_journal();
            // Failing to clean up must not hide the error that led here.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Bytes of a file whose chunks are all stored as they are, as in a stock file; `None` where its
/// sizes overflow.
pub fn stock_len(model: Metadata, plan: &StoredPlan) -> Option<u64> {
    let metadata = with_digests(model, plan, &placeholders(plan), &[0; 32]);
    plain_len(&metadata, plan)
}

/// Bytes of the same file with this metadata and nothing of ours, as other programs write it.
pub fn plain_len(metadata: &Metadata, plan: &StoredPlan) -> Option<u64> {
    let padded = |p: &Part| align_up(p.bytes(), DEFAULT_ALIGNMENT);
    plan.parts()
        .try_fold(data_start(metadata, plan)?, |sum, part| {
            sum.checked_add(padded(part)?)
        })
}

/// Whether a file can stand in this place, as far as can be seen without writing.
///
/// # Errors
/// [`WriteError::Place`] when anything but a plain file stands there, or the folder does not exist.
pub fn check_destination(destination: &Path) -> Result<(), WriteError> {
    Ok(check_place(destination)?)
}

/// What the system said, for the file that the user named and not the temporary one.
fn refused(destination: &Path, error: &io::Error) -> WriteError {
    let cause = error.get_ref().and_then(std::error::Error::source);
    WriteError::Destination {
        path: destination.to_path_buf(),
        problem: cause.map_or_else(|| error.to_string(), ToString::to_string),
    }
}

/// Opens the temporary file of a destination for this process alone.
fn lock(destination: &Path) -> Result<fs::File, WriteError> {
    let temporary = sibling(destination, "part");
    loop {
        let file = open_own(&temporary).map_err(|e| refused(destination, &e))?;
        match file.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(WriteError::Busy(destination.to_path_buf()));
            }
            Err(TryLockError::Error(e)) => return Err(refused(destination, &e)),
        }
        // Between opening and locking, the process that held the lock may have given the file its
        // final name: it must not be written to any more.
        if is_named(&file, &temporary) {
            return Ok(file);
        }
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

/// Where the data of a file with this metadata begins; `None` where its sizes overflow.
fn data_start(metadata: &Metadata, plan: &StoredPlan) -> Option<u64> {
    let header = header_len(metadata, &infos(plan, &placeholders(plan))?);
    align_up(header, DEFAULT_ALIGNMENT)
}

/// Nobody may read it who may not read the file that it replaces.
fn make_private(file: &fs::File) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
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
