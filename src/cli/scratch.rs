//! Folders for files that only this run needs.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use tempfile::TempDir;

/// What their names begin with.
const PREFIX: &str = ".dwindle-scratch-";

/// The file in each that its run holds a lock on.
const LOCK: &str = "lock";

/// A folder that is gone when it is dropped. Those of runs that were killed go when the next one
/// begins in the same place.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
    _lock: std::fs::File,
}

impl Scratch {
    /// Makes one in a folder, and removes what killed runs have left there.
    ///
    /// # Errors
    /// The folder can't be written to.
    pub fn new_in(folder: &Path) -> io::Result<Scratch> {
        remove_abandoned(folder)?;
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(folder)?;
        // It gets its name when it is locked: no other run finds it before.
        let early = dir.path().join("early");
        let lock = std::fs::File::create(&early)?;
        lock.try_lock()?;
        fs::rename(early, dir.path().join(LOCK))?;
        Ok(Scratch { dir, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

fn remove_abandoned(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path: PathBuf = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with(PREFIX) {
            continue;
        }
        // A run that ends at the same time removes its own.
        let Ok(lock) = std::fs::File::open(path.join(LOCK)) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            drop(fs::remove_dir_all(&path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_goes_and_what_a_run_uses_stays() {
        let folder = tempfile::tempdir().unwrap();
        let used = Scratch::new_in(folder.path()).unwrap();
        std::fs::write(used.path().join("file"), "x").unwrap();
        let abandoned = folder.path().join(format!("{PREFIX}abandoned"));
        std::fs::create_dir(&abandoned).unwrap();
        std::fs::write(abandoned.join(LOCK), "").unwrap();
        let other = Scratch::new_in(folder.path()).unwrap();
        assert!(!abandoned.exists());
        assert!(used.path().join("file").exists());
        let place = other.path().to_path_buf();
        drop(other);
        assert!(!place.exists());
    }
}
