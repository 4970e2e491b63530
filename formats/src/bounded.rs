//! Opens the user's files only after checking their kind and their length.
//!
//! A folder from anywhere may hold a link to a device that never ends, a pipe without a writer
//! to, or a file of a terabyte. Links are followed, because caches are made of them, but what they
//! lead to must be a regular file.

use std::fs::FileType;
use std::io::{Error, ErrorKind, Read as _, Result};
use std::path::Path;

use fs_err as fs;

/// The largest sizes of the kinds of files that are read whole. All are several times what is known
/// of real ones.
pub mod limits {
    /// A file that names one thing, such as a branch of a cache.
    pub const REFERENCE: u64 = 1 << 12;
    /// Configurations, chat templates, model cards.
    pub const CONFIGURATION: u64 = 1 << 24;
    /// The places of a checkpoint's tensors: ten megabytes for a hundred thousand of them.
    pub const INDEX: u64 = 1 << 27;
    /// Vocabularies and merges. The largest known `tokenizer.json` has 35 megabytes.
    pub const VOCABULARY: u64 = 1 << 27;
    /// Recipes, which may have a rule for each tensor.
    pub const RECIPE: u64 = 1 << 26;
    /// Texts to measure on, which are in memory as a whole.
    pub const TEXT: u64 = 1 << 30;
    /// What was measured of a model, as JSON.
    pub const MEASUREMENT: u64 = 1 << 28;
}

/// Opens a regular file, and nothing else, for reading. Never waits for a writer.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a folder, a pipe, a socket or a device, and the system's
/// reasons. The message names the path.
pub fn open(path: &Path) -> Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use fs_err::os::unix::fs::OpenOptionsExt as _;
        // A pipe without a writer is opened, too, instead of waited for; on files it has no effect.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    }
    let file = options.open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() {
        return Ok(file);
    }
    let found = name_of(kind);
    let problem = format!("`{}` is {found}, expected a regular file", path.display());
    let kind = if kind.is_dir() {
        ErrorKind::IsADirectory
    } else {
        ErrorKind::InvalidInput
    };
    Err(Error::new(kind, problem))
}

/// A whole file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; [`ErrorKind::FileTooLarge`] for a longer one.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let len = file.metadata()?.len();
    if len > limit {
        return Err(too_large(path, len, limit));
    }
    // The length may be wrong by now, or never have been right, as in `/proc`.
    let mut bytes = Vec::with_capacity(len as usize);
    file.take(limit + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        len if len > limit => Err(too_large(path, len, limit)),
        _ => Ok(bytes),
    }
}

/// As [`read`], or `None` where there is no such file.
///
/// # Errors
/// As [`read`].
pub fn read_if_there(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    match read(path, limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A whole text of at most `limit` bytes.
///
/// # Errors
/// As [`read`]; [`ErrorKind::InvalidData`] for bytes that are not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|_| {
        let problem = format!("`{}`: the text is not valid UTF-8", path.display());
        Error::new(ErrorKind::InvalidData, problem)
    })
}

fn too_large(path: &Path, found: u64, limit: u64) -> Error {
    let problem = format!(
        "`{}` has {found} bytes or more, the limit is {limit} for a file of its kind",
        path.display()
    );
    Error::new(ErrorKind::FileTooLarge, problem)
}

fn name_of(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    if kind.is_dir() { "a folder" } else { "no file" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit_and_not_beyond() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read(&path, 4).unwrap(), b"four");
        assert_eq!(read_text(&path, 5).unwrap(), "four");
        let error = read(&path, 3).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        let text = error.to_string();
        assert!(
            text.contains("4 bytes") && text.contains("limit is 3"),
            "{text}"
        );
        std::fs::write(&path, [0xff]).unwrap();
        let error = read_text(&path, 5).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn what_is_not_there_is_none_and_a_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert_eq!(read_if_there(&missing, 9).unwrap(), None);
        let error = read_if_there(dir.path(), 9).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::IsADirectory);
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_refused_and_files_without_a_length_are_bounded() {
        let error = read(Path::new("/dev/zero"), 9).unwrap_err();
        assert!(error.to_string().contains("is a device"), "{error}");
        let status = Path::new("/proc/self/status");
        if status.exists() {
            assert_eq!(read(status, 9).unwrap_err().kind(), ErrorKind::FileTooLarge);
            assert!(!read(status, 1 << 16).unwrap().is_empty());
        }
    }
}
