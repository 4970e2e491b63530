//! What the original predicts of a text, without the whole model in memory: its blocks are gone through one
//! by one, and logits are made of what comes out when they are asked for.

use std::path::Path;

use dwindle_formats::{bounded, output};

use super::block::Block;
use super::checkpoint::Checkpoint;
use super::embedding::streams_of;
use super::error::WalkError;
use super::head::Head;
use super::run::{BlockwiseError, Sequences, blocks_of, check, pool};
use super::runner::Runner;
use super::walk::Original as _;
use crate::eval::{Chunks, Logits};
use crate::llama::error::BoxError;
use crate::plan::Subject;

/// The largest file of rows that is read.
const LARGEST: u64 = 1 << 36;

/// What the output layer of a model reads of a text.
pub struct BlockwisePredictions<'a> {
    head: Head<'a>,
    chunks: Chunks,
    /// For each chunk the rows that are scored, and the last.
    rows: Vec<f32>,
}

impl<'a> BlockwisePredictions<'a> {
    /// Runs a model over a text, or reads what came out from `kept`, if that file is there; else it is
    /// written. Its name must change with the model and the text. `done` is called with the blocks that were
    /// gone through and their number.
    ///
    /// # Errors
    /// A model whose blocks can't be run, or llama.cpp's words.
    pub fn of(
        subject: Subject<'a>,
        text: &Sequences,
        (kept, scratch): (&Path, Option<&Path>),
        done: &mut (dyn FnMut(u32, u32) + Send),
    ) -> Result<BlockwisePredictions<'a>, BlockwiseError> {
        check(subject.model)?;
        let head = Head::new(subject).ok_or(WalkError::Node {
            node: "output".into(),
        })?;
        let chunks = text.chunks.clone();
        let len = chunks.count * (chunks.ctx - chunks.ctx / 2) * head.width();
        let rows = match read(kept, len) {
            Some(rows) => rows,
            None => {
                let run = || run(subject, text, scratch, done);
                let rows = pool(text.cut.threads)?.install(run)?;
                output::write(kept, bytemuck::cast_slice(&rows)).map_err(WalkError::from)?;
                rows
            }
        };
        Ok(BlockwisePredictions { head, chunks, rows })
    }
}

impl Logits for BlockwisePredictions<'_> {
    fn n_vocab(&self) -> usize {
        self.head.vocabulary()
    }

    fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    fn chunk(&self, chunk: usize) -> Result<Vec<f32>, BoxError> {
        let width = self.head.width();
        let each = self.chunks.ctx - self.chunks.ctx / 2;
        let rows = &self.rows[chunk * each * width..][..self.chunks.scored() * width];
        Ok(self.head.logits(rows, None)?)
    }
}

fn run(
    subject: Subject<'_>,
    text: &Sequences,
    scratch: Option<&Path>,
    done: &mut (dyn FnMut(u32, u32) + Send),
) -> Result<Vec<f32>, BlockwiseError> {
    let source = Checkpoint::new(subject);
    let blocks = blocks_of(subject.model);
    let mut stream = streams_of(&subject, &text.tokens, scratch)?;
    for number in 0..blocks {
        let block = Block::new(subject.model, number);
        let model = block
            .load(&text.cut, |i| source.ty(i), &|i, ty| source.bytes(i, ty))
            .map_err(WalkError::from)?;
        let mut runner = Runner::new(&model, &block, &text.cut)?;
        if number + 1 == blocks {
            return Ok(runner.scored(&stream)?);
        }
        runner.advance(&mut stream)?;
        done(number + 1, blocks);
    }
    Ok(Vec::new())
}

fn read(file: &Path, len: usize) -> Option<Vec<f32>> {
    let bytes = bounded::read(file, LARGEST).ok()?;
    if bytes.len() != 4 * len {
        return None;
    }
    let values = bytes.as_chunks::<4>().0.iter();
    Some(values.map(|b| f32::from_le_bytes(*b)).collect())
}
