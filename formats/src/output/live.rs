//! What is temporary now, for a process that ends without dropping anything.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fs_err as fs;

static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn live() -> MutexGuard<'static, Vec<PathBuf>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes a file or folder that is temporary from now on.
pub(super) fn begin(path: &Path) {
    live().push(path.to_path_buf());
}

/// Notes that it has gone, or has its own name now.
pub(super) fn end(path: &Path) {
    live().retain(|p| p != path);
}

/// Removes everything temporary that this process has made, and says how much it was. The process must
/// end now: until it does, nothing temporary begins or ends.
pub fn discard() -> usize {
    let live = live();
    for path in live.iter() {
        // What can't be removed is left to the next run.
        drop(fs::remove_file(path).or_else(|_| fs::remove_dir_all(path)));
    }
    let count = live.len();
    std::mem::forget(live);
    count
}
