//! Writes a packed state, record by record.

use std::io::{self, Write};

use sha2::{Digest as _, Sha256};

use super::{END, MAGIC, MAX_CELLS, MAX_EXPANSION, MAX_SETTINGS, Place, VERSION};

/// A packed state that is being written.
#[derive(Debug)]
pub struct PackedWriter<W> {
    out: W,
    records: u64,
    bytes: u64,
}

impl<W: Write> PackedWriter<W> {
    /// Writes the header: the codec's settings, and the state's [description](crate::state::describe).
    ///
    /// # Errors
    /// Writing fails, or one of both is longer than the format allows.
    pub fn new(out: W, settings: &[u8], description: &[u8]) -> io::Result<PackedWriter<W>> {
        let packed = zstd::bulk::compress(description, 12)?;
        let is_small = settings.len() <= MAX_SETTINGS
            && description.len() as u64 <= packed.len() as u64 * MAX_EXPANSION;
        if !is_small {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut head = Vec::with_capacity(settings.len() + packed.len() + 64);
        head.extend(MAGIC);
        head.extend(VERSION.to_le_bytes());
        head.extend(length(settings.len())?.to_le_bytes());
        head.extend(length(packed.len())?.to_le_bytes());
        head.extend((description.len() as u64).to_le_bytes());
        head.extend(settings);
        head.extend(&packed);
        let mut writer = PackedWriter {
            out,
            records: 0,
            bytes: 0,
        };
        writer.put(&[&head])?;
        Ok(writer)
    }

    /// Writes a record.
    ///
    /// # Errors
    /// Writing fails, or there are no cells or too many.
    pub fn record(&mut self, place: Place, payload: &[u8]) -> io::Result<()> {
        if !(1..=MAX_CELLS).contains(&place.cells) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let len = length(payload.len())?;
        let numbers = [place.section, place.stream, place.first, place.cells, len];
        let head: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.records += 1;
        self.put(&[&head, payload])
    }

    /// Writes the end. Gives what was written to, and the bytes.
    ///
    /// # Errors
    /// Writing fails.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        let mut end = END.to_le_bytes().to_vec();
        end.extend(self.records.to_le_bytes());
        self.put(&[&end])?;
        self.out.flush()?;
        Ok((self.out, self.bytes))
    }

    /// Bytes, and their checksum.
    fn put(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part);
            self.out.write_all(part)?;
            self.bytes += part.len() as u64;
        }
        let digest = hash.finalize();
        self.bytes += digest.len() as u64;
        self.out.write_all(&digest)
    }
}

fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
}
