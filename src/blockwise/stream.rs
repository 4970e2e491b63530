//! Rows of many tokens, in memory or in a file that only this run knows.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Rows of one width.
pub struct Stream {
    width: usize,
    rows: usize,
    place: Place,
}

enum Place {
    Memory(Vec<f32>),
    File(File),
}

impl Stream {
    /// Zeros; in a file without a name in `scratch`, if there is one, else in memory.
    ///
    /// # Errors
    /// No file can be made, or it has no room.
    pub fn new(rows: usize, width: usize, scratch: Option<&Path>) -> std::io::Result<Stream> {
        let place = match scratch {
            None => Place::Memory(vec![0.0; rows * width]),
            Some(folder) => {
                let file = tempfile::tempfile_in(folder)?;
                file.set_len((rows * width * 4) as u64)?;
                Place::File(file)
            }
        };
        Ok(Stream { width, rows, place })
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows from `first` on.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn read(&self, first: usize, rows: usize) -> std::io::Result<Vec<f32>> {
        let (start, len) = (first * self.width, rows * self.width);
        match &self.place {
            Place::Memory(values) => Ok(values[start..start + len].to_vec()),
            Place::File(file) => {
                let mut values = vec![0f32; len];
                file.read_exact_at(bytemuck::cast_slice_mut(&mut values), 4 * start as u64)?;
                Ok(values)
            }
        }
    }

    /// Replaces rows from `first` on.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn write(&mut self, first: usize, rows: &[f32]) -> std::io::Result<()> {
        let start = first * self.width;
        match &mut self.place {
            Place::Memory(values) => {
                values[start..start + rows.len()].copy_from_slice(rows);
                Ok(())
            }
            Place::File(file) => file.write_all_at(bytemuck::cast_slice(rows), 4 * start as u64),
        }
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.rows
    }
}
