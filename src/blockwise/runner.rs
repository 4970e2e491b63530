//! Runs one block on rows of a stream, some sequences at a time.

use std::ops::ControlFlow;

use super::block::Block;
use super::company;
use super::cut::{Batch, Cut};
use super::embedding::NAME as EMBEDDING;
use super::error::WalkError;
use super::head::OUTPUT;
use super::stream::Stream;
use crate::llama::activations::{Activation, LinearInput, Probe};
use crate::llama::context::BatchToken;
use crate::llama::model::Model;

/// A token that stands for a row.
fn looked_up((row, token): (i32, &BatchToken)) -> BatchToken {
    BatchToken {
        token: row,
        ..*token
    }
}

/// A block that llama.cpp has loaded.
pub struct Runner<'m> {
    probe: Probe<'m>,
    cut: Cut,
    inputs: Vec<LinearInput>,
    /// What rows are multiplied by before the graph reads them.
    scale: f32,
    by_tokens: bool,
    /// The stream behind the block, among the inputs.
    pub behind: usize,
}

impl<'m> Runner<'m> {
    /// Finds the layers of a block.
    ///
    /// # Errors
    /// llama.cpp's words, or a graph without the stream's name.
    pub fn new(model: &'m Model, block: &Block<'_>, cut: &Cut) -> Result<Runner<'m>, WalkError> {
        let node = block.behind();
        let probe = Probe::with_nodes(model, &cut.context(), &[&node])?;
        let mut inputs = probe.inputs().to_vec();
        // The embedding stands for the output layer, whether that has a weight of its own or not.
        for reader in inputs.iter_mut().flat_map(|i| &mut i.readers) {
            if reader.weight == OUTPUT {
                reader.weight = EMBEDDING.into();
            }
        }
        let is_node = |i: &LinearInput| i.readers.is_empty();
        let behind = inputs.iter().position(is_node);
        let behind = behind.ok_or(WalkError::Node { node })?;
        // What another block reads that only keeps this one company is nobody's.
        for input in &mut inputs {
            input.readers.retain(|r| !company::is_of(&r.weight));
        }
        Ok(Runner {
            probe,
            inputs,
            scale: block.scale(),
            by_tokens: block.by_tokens(),
            cut: cut.clone(),
            behind,
        })
    }

    /// How texts are cut.
    pub fn cut(&self) -> &Cut {
        &self.cut
    }

    /// What the block's layers read, and the stream behind it.
    pub fn inputs(&self) -> &[LinearInput] {
        &self.inputs
    }

    /// Evaluates a batch of rows and shows the inputs that `wanted` has as true.
    ///
    /// # Errors
    /// llama.cpp's words, or the observer's error.
    pub fn run(
        &mut self,
        batch: &Batch,
        rows: &[f32],
        wanted: &[bool],
        observer: &mut dyn FnMut(Activation<'_>) -> Result<(), WalkError>,
    ) -> Result<(), WalkError> {
        self.probe.clear();
        let scaled: Vec<f32>;
        let rows = match self.scale == 1.0 {
            true => rows,
            false => {
                scaled = rows.iter().map(|v| v * self.scale).collect();
                &scaled
            }
        };
        let mut failed = None;
        let mut show = |seen: Activation<'_>| match observer(seen) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        };
        let run = if self.by_tokens {
            self.look_up(rows)?;
            let tokens: Vec<BatchToken> = (0..).zip(&batch.tokens).map(looked_up).collect();
            self.probe.run(&tokens, wanted, &mut show)
        } else {
            self.probe
                .run_rows((&batch.tokens, rows), wanted, &mut show)
        };
        failed.map_or(Ok(()), Err)?;
        Ok(run?)
    }

    /// Puts rows where the graph looks tokens up.
    fn look_up(&self, rows: &[f32]) -> Result<(), WalkError> {
        let width = self.inputs[self.behind].width;
        let mut all = vec![0f32; width * self.cut.context().batch as usize];
        all[..rows.len()].copy_from_slice(rows);
        let model = self.probe.model();
        Ok(model.replace_bytes(EMBEDDING, bytemuck::cast_slice(&all))?)
    }

    /// Runs all rows of a stream through the block.
    ///
    /// # Errors
    /// As [`Self::run`], or the stream's file fails.
    pub fn advance(&mut self, stream: &mut Stream) -> Result<(), WalkError> {
        let behind = self.behind;
        let wanted: Vec<bool> = (0..self.inputs().len()).map(|i| i == behind).collect();
        for batch in self.cut.batches(0..self.cut.sequences(stream)) {
            let rows = stream.read(batch.rows.start, batch.rows.len())?;
            self.run(&batch, &rows, &wanted, &mut |seen| {
                Ok(stream.write(batch.rows.start, seen.values)?)
            })?;
        }
        Ok(())
    }

    /// What the output layer reads behind the last block, of the second half of each sequence: the rows
    /// that are scored, and the last.
    ///
    /// # Errors
    /// As [`Self::advance`].
    pub fn scored(&mut self, stream: &Stream) -> Result<Vec<f32>, WalkError> {
        let at = self.inputs().iter().position(|i| i.name() == EMBEDDING);
        let wanted: Vec<bool> = (0..self.inputs().len()).map(|i| Some(i) == at).collect();
        let sequence = stream.width() * self.cut.ctx;
        let first = self.cut.ctx / 2 * stream.width();
        let mut all = Vec::new();
        for batch in self.cut.batches(0..self.cut.sequences(stream)) {
            let rows = stream.read(batch.rows.start, batch.rows.len())?;
            self.run(&batch, &rows, &wanted, &mut |seen| {
                let sequences = seen.values.chunks(sequence);
                sequences.for_each(|rows| all.extend_from_slice(&rows[first..]));
                Ok(())
            })?;
        }
        Ok(all)
    }
}
