//! Checks that files that are read over hours don't change meanwhile.

use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use fs_err as fs;

/// A file of a source, as it was when it was opened.
#[derive(Debug, Clone)]
pub struct SourceFile {
    path: PathBuf,
    stamp: Stamp,
}

/// What changes with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
    /// Device and inode, where there are such.
    node: Option<(u64, u64)>,
}

/// A file is not what it was.
#[derive(Debug, thiserror::Error)]
#[error("`{}` changed while it was read, so nothing was written; run again when it is complete", .0.display())]
pub struct Changed(pub PathBuf);

impl SourceFile {
    /// Looks at a file that is about to be opened.
    ///
    /// # Errors
    /// It can't be looked at.
    pub fn of(path: &Path) -> std::io::Result<SourceFile> {
        Ok(SourceFile {
            path: path.to_path_buf(),
            stamp: Stamp::of(&fs::metadata(path)?),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.stamp.len
    }

    /// Whether the file is still the same.
    ///
    /// # Errors
    /// [`Changed`], also if the file is gone.
    pub fn check(&self) -> Result<(), Changed> {
        match fs::metadata(&self.path) {
            Ok(now) if Stamp::of(&now) == self.stamp => Ok(()),
            _ => Err(Changed(self.path.clone())),
        }
    }

    /// Its name, length and time of modification as bytes.
    pub(super) fn describe(&self) -> Vec<u8> {
        let name = self.path.file_name().unwrap_or_default();
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let nanos = self.stamp.modified.and_then(since);
        let nanos = nanos.map_or(0, |d| d.as_nanos());
        let mut bytes = name.as_encoded_bytes().to_vec();
        bytes.push(0);
        bytes.extend(self.stamp.len.to_le_bytes());
        bytes.extend(nanos.to_le_bytes());
        bytes
    }
}

impl Stamp {
    fn of(file: &Metadata) -> Stamp {
        #[cfg(unix)]
        let node = {
            use std::os::unix::fs::MetadataExt;
            Some((file.dev(), file.ino()))
        };
        #[cfg(not(unix))]
        let node = None;
        Stamp {
            len: file.len(),
            modified: file.modified().ok(),
            node,
        }
    }
}
