//! A digest of a source's contents.

use std::path::Path;

use dwindle_formats::bounded;
use fs_err as fs;
use sha2::{Digest as _, Sha256};

use super::{Source, SourceFile};

/// Bytes of a sample.
const SAMPLE: usize = 4096;

/// Samples of all tensors together, where these are few.
const SAMPLES: usize = 4096;

/// Samples of one tensor at most.
const MOST: usize = 8;

/// A digest of a source: the names, lengths and times of modification of its files, the names,
/// types and shapes of its tensors, and samples of the bytes of each tensor, spread evenly from its
/// first to its last. All of the bytes would cost as much as the work itself.
pub fn content(source: &dyn Source) -> [u8; 32] {
    let mut hash = Sha256::new();
    for file in source.files() {
        let description = file.describe();
        hash.update((description.len() as u64).to_le_bytes());
        hash.update(description);
    }
    let tensors = source.tensors();
    let count = (SAMPLES / tensors.len().max(1)).clamp(1, MOST);
    for (index, tensor) in tensors.iter().enumerate() {
        hash.update((tensor.name.len() as u64).to_le_bytes());
        hash.update(&tensor.name);
        hash.update(tensor.ty.id().to_le_bytes());
        hash.update((tensor.shape.len() as u64).to_le_bytes());
        tensor
            .shape
            .iter()
            .for_each(|n| hash.update(n.to_le_bytes()));
        let len = tensor.len();
        for start in starts(len, count) {
            hash.update(source.bytes(index, start..(start + SAMPLE).min(len)));
        }
        source.release(index);
    }
    hash.finalize().into()
}

/// Where samples begin.
fn starts(len: usize, count: usize) -> impl Iterator<Item = usize> {
    let last = len.saturating_sub(SAMPLE);
    let count = count.min(len.div_ceil(SAMPLE));
    (0..count).map(move |i| match count {
        1 => last / 2,
        _ => (last as u128 * i as u128 / (count as u128 - 1)) as usize,
    })
}

/// A digest of a checkpoint's files by their names, lengths, times of modification and beginnings.
///
/// # Errors
/// When a file can't be looked at.
pub fn files(checkpoint: &Path) -> std::io::Result<[u8; 32]> {
    use std::io::Read;
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
    for file in files {
        if !fs::metadata(&file)?.is_file() {
            continue;
        }
        hash.update(SourceFile::of(&file)?.describe());
        let mut beginning = Vec::new();
        let opened = bounded::open(&file)?;
        opened.take(1 << 20).read_to_end(&mut beginning)?;
        hash.update(beginning);
    }
    Ok(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_reach_from_the_first_byte_to_the_last() {
        let all = |len, count| starts(len, count).collect::<Vec<_>>();
        assert_eq!(all(0, 4), [0usize; 0]);
        assert_eq!(all(100, 4), [0]);
        assert_eq!(all(3 * SAMPLE, 8), [0, SAMPLE, 2 * SAMPLE]);
        assert_eq!(all(10 * SAMPLE, 4), [0, 3 * SAMPLE, 6 * SAMPLE, 9 * SAMPLE]);
    }
}
