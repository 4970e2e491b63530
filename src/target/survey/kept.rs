//! What a survey has found so far, as files: a killed one goes on behind the last block.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dwindle_formats::{bounded, output};
use fs_err as fs;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::blockwise::Stream;
use crate::statistics::TensorSurvey;

/// The file that says how far the survey is.
const STATE: &str = "state.json";

/// A folder of one survey.
pub struct Kept<'a> {
    folder: &'a Path,
}

/// How far a survey is.
#[derive(Serialize, Deserialize)]
pub struct State {
    /// The block that is next.
    pub next: u32,
    /// The group that the last stream is of.
    pub group: Option<usize>,
    /// What each tensor that was rounded does to the stream behind its block, for each such stream.
    pub parts: Vec<BTreeMap<usize, f64>>,
}

impl<'a> Kept<'a> {
    /// The folder is made where it is not there.
    pub fn new(folder: &'a Path) -> std::io::Result<Kept<'a>> {
        fs::create_dir_all(folder)?;
        Ok(Kept { folder })
    }

    /// Keeps what was found in a block, and the streams behind it: the original's first.
    pub fn keep(
        &self,
        state: &State,
        found: &[TensorSurvey],
        streams: &[&Stream],
    ) -> std::io::Result<()> {
        let done = state.next - 1;
        output::write(&self.block(done), &serde_json::to_vec(found)?)?;
        for (i, stream) in streams.iter().enumerate() {
            stream.save(&self.stream(state.next, i))?;
        }
        output::write(&self.folder.join(STATE), &serde_json::to_vec(state)?)?;
        for i in 0..streams.len() {
            match fs::remove_file(self.stream(done, i)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// How far an earlier run came, and what it found; `None` where that is not all there.
    pub fn read(&self) -> Option<(State, Vec<TensorSurvey>)> {
        let state: State = read(&self.folder.join(STATE))?;
        let blocks = (0..state.next).map(|n| read::<Vec<TensorSurvey>>(&self.block(n)));
        let found: Option<Vec<_>> = blocks.collect();
        Some((state, found?.concat()))
    }

    /// The file of a stream.
    pub fn stream(&self, before: u32, which: usize) -> PathBuf {
        self.folder.join(format!("stream-{which}-before-{before}"))
    }

    fn block(&self, number: u32) -> PathBuf {
        self.folder.join(format!("block-{number}.json"))
    }
}

fn read<T: DeserializeOwned>(file: &Path) -> Option<T> {
    let bytes = bounded::read(file, bounded::limits::MEASUREMENT).ok()?;
    serde_json::from_slice(&bytes).ok()
}
