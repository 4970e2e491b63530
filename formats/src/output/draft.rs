//! A file that appears under its name only when it is complete.

use std::fs::Permissions;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::place::{check_place, folder_of, is_named, permissions_of, sync_folder};
use super::{abandoned, live};

/// A file that is being written beside its destination, under a name of its own. It is gone when it
/// is dropped unfinished; leftovers of a killed run are removed when the next one begins in the
/// same folder.
#[derive(Debug)]
pub struct Draft {
    file: fs::File,
    path: PathBuf,
    destination: PathBuf,
    /// What the file has that is replaced.
    permissions: Option<Permissions>,
    is_finished: bool,
}

impl Draft {
    /// Begins a file.
    ///
    /// # Errors
    /// The destination can't hold a file, or the system refuses.
    pub fn new(destination: &Path) -> io::Result<Draft> {
        check_place(destination).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        let folder = folder_of(destination);
        abandoned::remove(folder);
        let permissions = permissions_of(destination);
        let refused = |e| refused(destination, &e);
        loop {
            let path = folder.join(abandoned::file_name());
            let file = match create(&path, permissions.as_ref()) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(refused)?,
            };
            // Until it is locked it looks abandoned, and another process may just be removing it.
            if file.file().try_lock().is_ok() && is_named(&file, &path) {
                live::begin(&path);
                return Ok(Draft {
                    file,
                    path,
                    destination: destination.to_path_buf(),
                    permissions,
                    is_finished: false,
                });
            }
            let _ = fs::remove_file(&path);
        }
    }

    /// Sets the file's length.
    ///
    /// # Errors
    /// The system refuses.
    pub fn set_len(&self, bytes: u64) -> io::Result<()> {
        let set = self.file.set_len(bytes);
        set.map_err(|e| refused(&self.destination, &e))
    }

    /// Makes everything durable and gives the file its name.
    ///
    /// # Errors
    /// The system refuses; an older file is then untouched.
    pub fn finish(mut self) -> io::Result<()> {
        let refused = |e| refused(&self.destination, &e);
        check_place(&self.destination)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        if let Some(permissions) = self.permissions.take() {
            self.file.set_permissions(permissions).map_err(refused)?;
        }
        self.file.sync_all().map_err(refused)?;
        fs::rename(&self.path, &self.destination).map_err(refused)?;
        live::end(&self.path);
        self.is_finished = true;
        sync_folder(&self.destination);
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_finished {
            // Failing to clean up must not hide the error that led here.
            let _ = fs::remove_file(&self.path);
            live::end(&self.path);
        }
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes);
        written.map_err(|e| refused(&self.destination, &e))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Read for Draft {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.file.read(bytes)
    }
}

impl Seek for Draft {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Writes a whole file.
///
/// # Errors
/// As [`Draft`].
pub fn write(destination: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut draft = Draft::new(destination)?;
    draft.write_all(bytes)?;
    draft.finish()
}

/// A new file, readable by nobody who may not read the one that it replaces.
fn create(path: &Path, permissions: Option<&Permissions>) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    // `create_new` follows no link.
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    if permissions.is_some() {
        use fs_err::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    #[cfg(not(unix))]
    let _ = permissions;
    options.open(path)
}

/// What the system said, for the file that the user named and not the temporary one.
fn refused(destination: &Path, error: &io::Error) -> io::Error {
    let cause = error.get_ref().and_then(std::error::Error::source);
    let cause = cause.map_or_else(|| error.to_string(), ToString::to_string);
    let text = format!("`{}` can't be written: {cause}", destination.display());
    io::Error::new(error.kind(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let name = |e: io::Result<std::fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = entries.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_when_it_is_complete_and_a_dropped_one_never() {
        let folder = tempfile::tempdir().unwrap();
        let destination = folder.path().join("file");
        std::fs::write(&destination, "older").unwrap();
        let mut draft = Draft::new(&destination).unwrap();
        draft.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&destination).unwrap(), b"older");
        drop(draft);
        assert_eq!(names(folder.path()), ["file"]);
        write(&destination, b"new").unwrap();
        assert_eq!(std::fs::read(&destination).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["file"]);
    }

    #[test]
    fn drafts_of_dead_processes_go_and_those_of_living_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let abandoned = folder.path().join(".dwindle-1-1.tmp");
        std::fs::write(&abandoned, "x").unwrap();
        let first = Draft::new(&folder.path().join("first")).unwrap();
        let second = Draft::new(&folder.path().join("second")).unwrap();
        assert!(!abandoned.exists());
        assert!(first.path.exists() && second.path.exists());
        first.finish().unwrap();
        second.finish().unwrap();
        assert_eq!(names(folder.path()), ["first", "second"]);
    }
}
