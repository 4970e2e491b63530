//! Read-only memory maps of files. Mapping is `unsafe`; apart from llama.cpp's bindings, all
//! `unsafe` is here.

use std::ops::{Deref, Range};
use std::path::Path;

use dwindle_formats::bounded;
use memmap2::{Mmap, UncheckedAdvice};

/// A whole file, mapped read-only.
///
/// As with every memory map, a file that another process truncates while it is mapped ends this
/// process with SIGBUS.
#[derive(Debug)]
pub struct Mapping(Mmap);

impl Mapping {
    /// Maps a file.
    ///
    /// # Errors
    /// When the file can't be opened or mapped, or is not a regular file; the error names the path.
    pub fn open(path: &Path) -> std::io::Result<Mapping> {
        let file = bounded::open(path)?;
        // SAFETY: the map is read-only and private to this process; changes by others are
        // excluded by contract, as the type's documentation says.
        let map = unsafe { Mmap::map(file.file()) }
            .map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
        Ok(Mapping(map))
    }

    /// Drops the pages of a range from this process; reading them again maps them again.
    pub fn release(&self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        // SAFETY: DONTNEED on a read-only file map discards nothing that the file does not hold.
        let released = unsafe {
            self.0
                .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        // Advice is only advice: memory stays higher where the system refuses it.
        let _ = released;
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
