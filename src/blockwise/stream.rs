//! Rows of many tokens, in memory or in a file that only this run knows.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use dwindle_formats::bounded;
use dwindle_formats::output::Draft;

/// Elements that are copied at a time.
const PIECE: usize = 1 << 20;

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

    /// Writes all rows to a file.
    ///
    /// # Errors
    /// It can't be written.
    pub fn save(&self, file: &Path) -> std::io::Result<()> {
        let mut draft = Draft::new(file)?;
        let step = (PIECE / self.width.max(1)).max(1);
        for first in (0..self.rows).step_by(step) {
            let rows = self.read(first, step.min(self.rows - first))?;
            draft.write_all(bytemuck::cast_slice(&rows))?;
        }
        draft.finish()
    }

    /// Whether a file has as many rows of this width.
    pub fn fits(&self, file: &Path) -> bool {
        let len = bounded::open(file).and_then(|f| f.metadata());
        len.is_ok_and(|found| found.len() == (4 * self.rows * self.width) as u64)
    }

    /// Reads all rows from a file that fits.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn restore(&mut self, file: &Path) -> std::io::Result<()> {
        let mut file = bounded::open(file)?;
        let step = (PIECE / self.width.max(1)).max(1);
        for first in (0..self.rows).step_by(step) {
            let mut rows = vec![0f32; step.min(self.rows - first) * self.width];
            file.read_exact(bytemuck::cast_slice_mut(&mut rows))?;
            self.write(first, &rows)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rows");
        let values: Vec<f32> = (0..700_001 * 3).map(|i| i as f32).collect();
        let mut stream = Stream::new(700_001, 3, None).unwrap();
        stream.write(0, &values).unwrap();
        stream.save(&file).unwrap();
        let mut back = Stream::new(700_001, 3, Some(dir.path())).unwrap();
        assert!(back.fits(&file));
        back.restore(&file).unwrap();
        assert_eq!(back.read(0, 700_001).unwrap(), values);
        assert!(!Stream::new(7, 3, None).unwrap().fits(&file));
        assert!(!back.fits(&dir.path().join("missing")));
    }
}
