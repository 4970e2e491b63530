//! What an unfinished output must have been made from for a later run to go on with it.

use std::path::Path;
use std::time::UNIX_EPOCH;

use fs_err as fs;
use sha2::{Digest as _, Sha256};

/// A digest over the names, lengths and modification times of a checkpoint's files and of
/// further inputs. Contents are not read: that would cost as much as the work itself.
///
/// # Errors
/// When a file can't be looked at.
pub fn fingerprint(checkpoint: &Path, further: &[Option<&Path>]) -> std::io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut files = Vec::new();
    if checkpoint.is_dir() {
        for entry in fs::read_dir(checkpoint)? {
            files.push(entry?.path());
        }
        files.sort();
    } else {
        files.push(checkpoint.to_path_buf());
    }
    files.extend(further.iter().flatten().map(|p| p.to_path_buf()));
    for file in files {
        let meta = fs::metadata(&file)?;
        if !meta.is_file() {
            continue;
        }
        let modified = meta.modified()?.duration_since(UNIX_EPOCH);
        hash.update(file.as_os_str().as_encoded_bytes());
        hash.update(meta.len().to_le_bytes());
        hash.update(modified.map_or(0, |d| d.as_nanos()).to_le_bytes());
    }
    Ok(hash.finalize().into())
}
