//! Parked texts as files: `DIR/<model>/<text>.dwkv`.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use dwindle_formats::packed::Packed;
use dwindle_formats::state::tokens;
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use super::super::error::CacheError;
use super::super::receiver::can_be_cut;
use super::options::Warn;
use super::store::{Described, File};
use crate::kv::KvError;
use crate::llama::model::Token;
use crate::mapped::Mapping;

const ENDING: &str = "dwkv";
/// Digits of a file's name.
const DIGITS: usize = 32;

/// Locked as long as a server uses the folder.
const LOCK: &str = "lock";

/// The folder of a model's parked texts.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Unlocked with the process, however it ends.
    _lock: std::fs::File,
}

impl Folder {
    /// Makes it where it is not. Nobody else may read what somebody asked.
    ///
    /// # Errors
    /// Another server parks there: each would remove the other's.
    pub fn open(all: &Path, key: &str) -> Result<Folder, CacheError> {
        let path = all.join(&key[..key.len().min(16)]);
        private(&path)?;
        let lock = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Folder { path, _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => Err(CacheError::Shared(path)),
            Err(std::fs::TryLockError::Error(e)) => Err(e.into()),
        }
    }

    /// Its texts, those used last behind. Of a damaged one, of which a warning tells, only the file is known; other files are
    /// passed over.
    pub fn list(&self, warn: &Warn) -> std::io::Result<Vec<(Described, File)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let path = entry.path();
            let about = entry.metadata()?;
            if !about.is_file() || !is_ours(&path) {
                continue;
            }
            let text = described(&path).unwrap_or_else(|error| {
                warn(&format!("{}: {error}; it is ignored", path.display()));
                Described::default()
            });
            let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let len = about.len();
            found.push((used, text, File { path, len }));
        }
        found.sort_by_key(|(used, ..)| *used);
        Ok(found
            .into_iter()
            .map(|(_, text, file)| (text, file))
            .collect())
    }

    /// Writes a packed text.
    pub fn write(&self, text: &[Token], packed: &[u8]) -> std::io::Result<File> {
        let mut digest = Sha256::new();
        text.iter().for_each(|t| digest.update(t.to_le_bytes()));
        let name = crate::statistics::hex(&digest.finalize());
        let path = self.path.join(&name[..DIGITS]).with_extension(ENDING);
        dwindle_formats::output::write(&path, packed)?;
        Ok(File {
            path,
            len: packed.len() as u64,
        })
    }

    /// Removes files that this has written or listed; those that are gone already are no loss.
    pub fn remove(&self, files: &[PathBuf]) {
        for file in files {
            // One that can't be removed is listed by the next server.
            let _ = fs::remove_file(file);
        }
    }
}

/// Marks a file as used, for those that list it later.
pub(super) fn use_now(path: &Path) {
    let file = std::fs::File::options().append(true).open(path);
    // Where that can't be, the order is another.
    let _ = file.and_then(|f| f.set_modified(SystemTime::now()));
}

fn is_ours(path: &Path) -> bool {
    let stem = path.file_stem().unwrap_or_default().as_encoded_bytes();
    path.extension().is_some_and(|e| e == ENDING)
        && stem.len() == DIGITS
        && stem.iter().all(u8::is_ascii_hexdigit)
}

fn described(path: &Path) -> Result<Described, CacheError> {
    let file = Mapping::open(path)?;
    let state = Packed::read(&file).map_err(KvError::from)?.state;
    let tokens = tokens(&state.tokens).ok_or(CacheError::NoTokens)?.to_vec();
    let is_whole = can_be_cut(&state);
    Ok(Described { tokens, is_whole })
}

#[cfg(unix)]
fn private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;

    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(folder);
    made.map_err(|e| std::io::Error::new(e.kind(), format!("`{}`: {e}", folder.display())))
}

#[cfg(not(unix))]
fn private(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)
}
