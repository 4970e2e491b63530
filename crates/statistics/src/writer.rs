//! Writes a statistics file, one group at a time, in any order.

use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use dwindle_formats::output::Draft;
use sha2::{Digest as _, Sha256};

use super::accumulate::Accumulator;
use super::layout::{Document, Group, Places, Provenance, VERSION};

/// A statistics file that is being written beside its destination.
pub struct StatisticsWriter {
    file: Draft,
    document: Document,
    places: Vec<Places>,
    /// Where the tensors' data begins.
    start: usize,
    /// Bytes of the whole file.
    pub bytes: u64,
}

impl StatisticsWriter {
    /// Begins a file; its size is fixed by the groups.
    ///
    /// # Errors
    /// When the file can't be made, or the disk has no room for it.
    pub fn create(
        destination: &Path,
        provenance: Provenance,
        groups: Vec<Group>,
    ) -> std::io::Result<StatisticsWriter> {
        let document = Document {
            version: VERSION,
            provenance,
            groups,
        };
        let (header, places, data) = document.lay_out().ok_or_else(|| {
            std::io::Error::new(
                std::io::ErrorKind::FileTooLarge,
                "the file would be too large",
            )
        })?;
        let mut file = Draft::new(destination)?;
        let bytes = (header.len() + data) as u64;
        // Whether the disk has the room is better known before the work than after.
        file.set_len(bytes)?;
        file.write_all(&header)?;
        Ok(StatisticsWriter {
            file,
            document,
            places,
            start: header.len(),
            bytes,
        })
    }

    /// Writes what was measured of a group.
    pub fn write(&mut self, group: usize, sums: &Accumulator) -> std::io::Result<()> {
        let Group { slices, blocks, .. } = self.document.groups[group].clone();
        let places = self.places[group].clone();
        let mut digests = vec![[0u8; 32]];
        // Digests stand in the order slice, block; matrices in the order block, slice.
        digests.resize(1 + slices * blocks.len(), [0; 32]);
        for (b, (block, place)) in blocks.iter().zip(&places.grams).enumerate() {
            self.seek(place.start)?;
            for slice in 0..slices {
                let mut hash = Sha256::new();
                sums.gram_rows(slice, block, |rows| {
                    let bytes = little_endian(rows);
                    hash.update(&bytes);
                    self.file.write_all(&bytes)
                })?;
                digests[1 + slice * blocks.len() + b] = hash.finalize().into();
            }
        }
        let tokens: Vec<u8> = sums.rows().flat_map(u64::to_le_bytes).collect();
        let of_slices = |values: &dyn Fn(usize) -> Vec<f32>| -> Vec<u8> {
            (0..slices)
                .flat_map(|s| little_endian(&values(s)))
                .collect()
        };
        let mean = of_slices(&|s| sums.mean(s));
        let diagonal = of_slices(&|s| sums.diagonal(s));
        digests[0] = self.document.digest(group, &tokens, &mean, &diagonal);
        for (place, bytes) in [
            (places.tokens, tokens),
            (places.digests, digests.concat()),
            (places.mean, mean),
            (places.diagonal, diagonal),
        ] {
            self.seek(place.start)?;
            self.file.write_all(&bytes)?;
        }
        Ok(())
    }

    fn seek(&mut self, place: usize) -> std::io::Result<()> {
        self.file
            .seek(SeekFrom::Start((self.start + place) as u64))?;
        Ok(())
    }

    /// Puts the file in its place.
    pub fn finish(self) -> std::io::Result<()> {
        self.file.finish()
    }
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
