//! Folders for files that only one run needs.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::place::is_named;
use super::{abandoned, live};

/// A folder that is gone when it is dropped. Those of runs that were killed go when the next one
/// begins in the same place.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// The folder itself, locked.
    _lock: fs::File,
}

impl Scratch {
    /// Makes one in a folder, and removes what killed runs have left there.
    ///
    /// # Errors
    /// The folder can't be written to.
    pub fn new_in(folder: &Path) -> io::Result<Scratch> {
        abandoned::remove(folder);
        loop {
            let path = folder.join(abandoned::folder_name());
            match create(&path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            // Until it is locked it looks abandoned, and another process may just be removing it.
            let lock = match fs::File::open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
            if lock.file().try_lock().is_ok() && is_named(&lock, &path) {
                live::begin(&path);
                return Ok(Scratch { path, _lock: lock });
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next run tries again.
        let _ = fs::remove_dir_all(&self.path);
        live::end(&self.path);
    }
}

/// A folder for this user alone.
fn create(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    let named = |e: io::Error| io::Error::new(e.kind(), format!("`{}`: {e}", path.display()));
    builder.create(path).map_err(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_goes_and_what_a_run_uses_stays() {
        let folder = tempfile::tempdir().unwrap();
        let used = Scratch::new_in(folder.path()).unwrap();
        std::fs::write(used.path().join("file"), "x").unwrap();
        let abandoned = folder.path().join(".dwindle-1-1.scratch");
        std::fs::create_dir(&abandoned).unwrap();
        std::fs::write(abandoned.join("file"), "x").unwrap();
        let other = Scratch::new_in(folder.path()).unwrap();
        assert!(!abandoned.exists());
        assert!(used.path().join("file").exists());
        let place = other.path().to_path_buf();
        drop(other);
        assert!(!place.exists());
    }
}
