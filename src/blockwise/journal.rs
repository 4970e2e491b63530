//! What a walk has made so far, block by block, as files: a killed run goes on behind the last block, and a
//! run that makes the same again finds it made.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dwindle_formats::output;
use fs_err as fs;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::error::WalkError;
use super::stream::Stream;
use crate::mapped::Mapping;
use crate::writing::{ErrorSums, FittedStep, Payload};

/// How all journals are called.
const NAME: &str = "rounded-";

/// Journals that stay beside a new one: each is as large as the file that it is of.
const KEPT: usize = 3;

/// A folder of blocks.
pub struct Journal {
    folder: PathBuf,
}

impl Journal {
    /// The journal of a key in a folder: a digest of everything that the blocks depend on. Of the others
    /// only those that were written last stay.
    ///
    /// # Errors
    /// The folder can't be made, or an old journal can't be removed.
    pub fn open(all: &Path, key: &str) -> std::io::Result<Journal> {
        let folder = all.join(format!("{NAME}{key}"));
        let mut others = Vec::new();
        for entry in fs::read_dir(all)? {
            let entry = entry?;
            if entry.path() != folder && entry.file_name().to_string_lossy().starts_with(NAME) {
                others.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        others.sort_unstable_by(|a, b| b.cmp(a));
        for (_, old) in others.into_iter().skip(KEPT) {
            fs::remove_dir_all(old)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(Journal { folder })
    }

    fn block(&self, number: u32) -> PathBuf {
        self.folder.join(format!("block-{number}"))
    }

    fn stream(&self, before: u32, which: usize) -> PathBuf {
        let name = ["original", "compressed"][which];
        self.folder.join(format!("{name}-before-{before}"))
    }

    /// Blocks that are made, from the first on.
    pub fn made(&self) -> u32 {
        (0..).find(|n| !self.block(*n).exists()).unwrap_or(0)
    }

    /// Keeps what was made of a block, and both streams behind it, where another block reads them.
    ///
    /// # Errors
    /// The files can't be written.
    pub fn keep(
        &self,
        number: u32,
        made: &[(usize, &FittedStep)],
        streams: Option<[&Stream; 2]>,
    ) -> Result<(), WalkError> {
        for (i, stream) in streams.iter().flatten().enumerate() {
            stream.save(&self.stream(number + 1, i))?;
        }
        let mut about = HashMap::new();
        let mut views = Vec::new();
        for (step, (parts, sums)) in made {
            let lost = format!("{} {}", sums.error.to_bits(), sums.signal.to_bits());
            about.insert(step.to_string(), lost);
            for (i, part) in parts.iter().enumerate() {
                views.push((format!("{step}.{i}"), view(Dtype::U8, part.len(), part)));
            }
        }
        write(&self.block(number), views.into_iter(), about)?;
        for i in 0..2 {
            match fs::remove_file(self.stream(number, i)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// What was made of a block, in a mapped file; `None` where the file is not whole.
    pub fn read(&self, number: u32) -> Option<Vec<(usize, FittedStep)>> {
        let bytes = Arc::new(Mapping::open(&self.block(number)).ok()?);
        let file = SafeTensors::deserialize(&bytes).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let mut found = Vec::new();
        for (step, lost) in header.metadata().as_ref()? {
            let (error, signal) = lost.split_once(' ')?;
            let number = |text: &str| text.parse().ok().map(f64::from_bits);
            let sums = ErrorSums {
                error: number(error)?,
                signal: number(signal)?,
            };
            let part = |i: usize| file.tensor(&format!("{step}.{i}")).ok();
            let parts = (0..).map_while(part).map(|view| {
                let start = view.data().as_ptr().addr() - bytes.as_ptr().addr();
                Payload::Mapped(Arc::clone(&bytes), start..start + view.data().len())
            });
            found.push((step.parse().ok()?, (parts.collect(), sums)));
        }
        found.sort_by_key(|(step, _)| *step);
        Some(found)
    }

    /// Reads both streams before a block. Gives false, and leaves them, where one is not there or has other
    /// rows.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn read_streams(&self, number: u32, into: &mut [Stream; 2]) -> std::io::Result<bool> {
        let files = [0, 1].map(|i| self.stream(number, i));
        let fits = into.iter().zip(&files).all(|(s, file)| s.fits(file));
        if fits {
            for (stream, file) in into.iter_mut().zip(&files) {
                stream.restore(file)?;
            }
        }
        Ok(fits)
    }
}

fn view(dtype: Dtype, len: usize, bytes: &[u8]) -> Option<TensorView<'_>> {
    TensorView::new(dtype, vec![len], bytes).ok()
}

fn write<'a>(
    path: &Path,
    views: impl Iterator<Item = (String, Option<TensorView<'a>>)>,
    about: HashMap<String, String>,
) -> std::io::Result<()> {
    let views: Vec<(String, TensorView<'a>)> = views
        .filter_map(|(name, view)| Some((name, view?)))
        .collect();
    let bytes = safetensors::serialize(views, Some(about)).map_err(std::io::Error::other)?;
    output::write(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journals_that_were_written_last_stay() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("survey.json"), "{}").unwrap();
        for key in 0..6u64 {
            let journal = Journal::open(dir.path(), &key.to_string()).unwrap();
            let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(key);
            let folder = std::fs::File::open(&journal.folder).unwrap();
            folder.set_modified(time).unwrap();
        }
        let mut left: Vec<String> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let expected = [
            "rounded-2",
            "rounded-3",
            "rounded-4",
            "rounded-5",
            "survey.json",
        ];
        assert_eq!(left, expected);
    }
}
