//! Checks every byte of a file against its digests, on all cores.

use rayon::prelude::*;

use super::{Container, ContainerError};

/// What [`verify`] found wrong: the error of one chunk.
pub type Damage = ContainerError;

/// Checks every chunk of a file, in parallel, and returns what differs, in file order.
///
/// `seen` is called with the number of bytes after each chunk; `release` with each chunk's range
/// of the file when it is done with, so that a memory map can drop the pages.
pub fn verify(
    container: &Container,
    bytes: &[u8],
    seen: impl Fn(u64) + Sync,
    release: impl Fn(std::ops::Range<usize>) + Sync,
) -> Vec<Damage> {
    let chunks: Vec<_> = container
        .chunks()
        .flat_map(|(part, chunks)| {
            chunks
                .iter()
                .enumerate()
                .map(move |(i, chunk)| (part, i as u64, chunk))
        })
        .collect();
    chunks
        .par_iter()
        .filter_map(|(part, index, chunk)| {
            let result = chunk.check(bytes, part, *index);
            seen(chunk.hashed.len() as u64);
            release(chunk.hashed.clone());
            result.err()
        })
        .collect()
}
