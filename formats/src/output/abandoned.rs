//! Names of temporary files and folders, and removal of those that killed runs left.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use fs_err as fs;

/// What all names begin with.
const PREFIX: &str = ".dwindle-";

/// How the names of files end.
const FILE: &str = ".tmp";

/// How the names of folders end.
const FOLDER: &str = ".scratch";

/// A name that this process has not given before. Another that is dead may have: then the next is
/// tried.
fn next() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{count}", std::process::id())
}

/// A name for a temporary file.
pub(super) fn file_name() -> String {
    next() + FILE
}

/// A name for a temporary folder.
pub(super) fn folder_name() -> String {
    next() + FOLDER
}

/// Removes temporary files and folders whose processes are dead. What can't be inspected is kept.
pub(super) fn remove(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let (path, kind) = (entry.path(), entry.file_type());
        let Ok(kind) = kind else { continue };
        if !name.starts_with(PREFIX) {
            continue;
        }
        if kind.is_file() && name.ends_with(FILE) {
            if let Some(_lock) = orphan(&path) {
                drop(fs::remove_file(&path));
            }
        } else if kind.is_dir()
            && name.ends_with(FOLDER)
            && let Some(_lock) = orphan(&path)
        {
            drop(fs::remove_dir_all(&path));
        }
    }
}

/// An unlocked file or folder, locked for us until it is removed.
fn orphan(path: &Path) -> Option<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    let file = options.open(path).ok()?;
    file.try_lock().is_ok().then_some(file)
}
