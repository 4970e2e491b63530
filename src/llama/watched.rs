//! Checks whether a file that llama.cpp has mapped has changed.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use dwindle_formats::bounded;
use fs_err as fs;

use super::error::LlamaError;

/// A mapped file. One that another process truncates ends this one with SIGBUS when the lost pages
/// are read, and one that is written over computes nonsense; so it is looked at before each
/// evaluation. What happens during one can't be helped.
#[derive(Debug)]
pub(super) struct Watched {
    path: PathBuf,
    file: fs::File,
    seen: (u64, Option<SystemTime>),
}

impl Watched {
    /// Begins to watch a file.
    pub fn open(path: &Path) -> std::io::Result<Watched> {
        let file = bounded::open(path)?;
        Ok(Watched {
            path: path.to_path_buf(),
            seen: look(&file)?,
            file,
        })
    }

    /// Whether the file is as it was.
    pub fn check(&self) -> Result<(), LlamaError> {
        // A file that can't be looked at is none that was changed.
        match look(&self.file) {
            Ok(now) if now != self.seen => Err(LlamaError::Changed {
                path: self.path.clone(),
                was: self.seen.0,
                is: now.0,
            }),
            _ => Ok(()),
        }
    }
}

fn look(file: &fs::File) -> std::io::Result<(u64, Option<SystemTime>)> {
    let about = file.metadata()?;
    Ok((about.len(), about.modified().ok()))
}
