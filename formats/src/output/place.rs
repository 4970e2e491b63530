//! Checks whether a file can be written at a path, and opens our own files there.

use std::ffi::OsString;
use std::fs::{FileType, Metadata, Permissions};
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;

/// A place where no file can be written.
#[derive(Debug, thiserror::Error)]
#[error("`{}` can't be written: {problem}", path.display())]
pub struct PlaceError {
    /// The place.
    pub path: PathBuf,
    /// What stands against it.
    pub problem: String,
}

/// Whether a file can stand in this place, as far as can be seen without writing: there is nothing,
/// or a plain file.
///
/// # Errors
/// A folder, link, pipe, socket or device stands there, or the folder does not exist.
pub fn check_place(destination: &Path) -> Result<(), PlaceError> {
    match problem(destination) {
        None => Ok(()),
        Some(problem) => Err(PlaceError {
            path: destination.to_path_buf(),
            problem,
        }),
    }
}

fn problem(destination: &Path) -> Option<String> {
    let folder = folder_of(destination);
    if destination.file_name().is_none() {
        return Some("it is a folder, expected the name of a file".into());
    }
    match fs::symlink_metadata(destination) {
        Ok(found) if found.is_file() => None,
        Ok(found) if found.is_dir() => Some("it is a folder, expected the name of a file".into()),
        Ok(found) => Some(format!(
            "it is {}, expected a plain file or a name that is free; name the file itself",
            name_of(found.file_type())
        )),
        Err(_) if !folder.is_dir() => Some(format!(
            "there is no folder `{}`; create it first",
            folder.display()
        )),
        Err(_) => None,
    }
}

#[cfg(unix)]
fn name_of(kind: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match () {
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() || kind.is_block_device() => "a device",
        () => "no plain file",
    }
}

#[cfg(not(unix))]
fn name_of(kind: FileType) -> &'static str {
    if kind.is_symlink() {
        "a symbolic link"
    } else {
        "no plain file"
    }
}

/// The folder that a file is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// `.name.suffix` beside a destination, so that a rename stays on one file system.
pub(crate) fn sibling(destination: &Path, suffix: &str) -> PathBuf {
    let mut hidden = OsString::from(".");
    hidden.push(destination.file_name().unwrap_or_default());
    hidden.push(".");
    hidden.push(suffix);
    destination.with_file_name(hidden)
}

/// Opens a file of ours for reading and writing, and makes it where it is missing. Links are not
/// followed: whoever planted one would choose the file that is overwritten.
pub(crate) fn open_own(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use fs_err::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    let planted = |kind: &str| {
        let name = path.file_name().unwrap_or_default();
        io::Error::other(format!(
            "beside it `{}` is {kind}, expected a file of dwindle's own; remove it",
            name.display()
        ))
    };
    let file = options
        .open(path)
        .map_err(|e| match std::fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() => planted(name_of(found.file_type())),
            _ => e,
        })?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(planted(name_of(found.file_type())));
    }
    if has_other_names(&found) {
        return Err(planted("a hard link to another file"));
    }
    Ok(file)
}

#[cfg(unix)]
fn has_other_names(file: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.nlink() > 1
}

#[cfg(not(unix))]
fn has_other_names(_: &Metadata) -> bool {
    false
}

/// Whether a path still leads to a file that was opened by it.
pub(crate) fn is_named(file: &fs::File, path: &Path) -> bool {
    let own = file
        .file()
        .try_clone()
        .and_then(same_file::Handle::from_file);
    own.is_ok_and(|own| same_file::Handle::from_path(path).is_ok_and(|named| named == own))
}

/// The permissions that a file in this place has and is to keep.
pub(crate) fn permissions_of(destination: &Path) -> Option<Permissions> {
    let found = std::fs::symlink_metadata(destination).ok()?;
    found.is_file().then(|| found.permissions())
}

/// Makes a rename durable where folders can be synced.
pub(crate) fn sync_folder(path: &Path) {
    if let Ok(folder) = fs::File::open(folder_of(path)) {
        let _ = folder.sync_all();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn devices_are_refused() {
        let error = check_place(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(error.contains("`/dev/null` can't be written: it is a device"));
    }
}
