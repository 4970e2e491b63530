//! The walk over a model, block by block, with two streams side by side: the rows that the original's
//! blocks give, and those that the compressed ones give.
//!
//! The original's block runs once over all tokens; what its layers read is kept. The compressed block
//! runs as often as it has inputs whose readers are treated, each time up to that input: what was
//! treated before is in it, so that each layer is treated for what it will really read. Peak memory is
//! one block of each model and the streams, which may be in files.

use std::collections::HashMap;
use std::path::Path;

use dwindle_formats::gguf::TensorType;

use super::block::Block;
use super::cut::Cut;
use super::error::WalkError;
use super::runner::Runner;
use super::stream::Stream;
use crate::architecture;
use crate::llama::activations::LinearInput;
use crate::llama::error::BoxError;
use crate::method::drift::{Drift, Rows};
use crate::method::error::MethodError;

/// The widest block of an input whose second moments are measured for rounding. Wider ones cost time,
/// and gain nothing that could be measured (docs/notes.md).
pub const WIDEST: usize = 2048;

/// Bytes of the sums of one input, above which experts share them.
pub const MOST_SUMS: u64 = 1 << 30;

/// What becomes of a model's tensors in the compressed stream.
pub trait Treat {
    /// The type that a tensor has there.
    fn ty(&self, tensor: usize) -> TensorType;

    /// Whether a tensor is treated when its input is seen.
    fn awaits(&self, tensor: usize) -> bool;

    /// The bytes of a tensor that is not.
    ///
    /// # Errors
    /// Any.
    fn bytes(&self, tensor: usize, ty: TensorType) -> Result<Vec<u8>, BoxError>;

    /// The widest block of an input whose second moments these tensors need.
    fn widest(&self, tensors: &[usize]) -> usize;

    /// Treats tensors that read one input, and gives their bytes. Of stacks there is one drift for each
    /// slice, or one for all.
    ///
    /// # Errors
    /// Any.
    fn layer(&mut self, tensors: &[usize], drifts: &[Drift]) -> Result<Vec<Vec<u8>>, BoxError>;
}

/// The original's tensors.
pub trait Original {
    /// The type in which a tensor is run.
    fn ty(&self, tensor: usize) -> TensorType;

    /// Its bytes.
    ///
    /// # Errors
    /// Any.
    fn bytes(&self, tensor: usize, ty: TensorType) -> Result<Vec<u8>, BoxError>;
}

/// How tokens are walked.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// How they are cut.
    pub cut: Cut,
    /// A folder for streams, where they are not to be in memory.
    pub scratch: Option<&'a Path>,
}

/// Both streams, before some block.
pub struct Walk<'a> {
    model: &'a architecture::Model,
    options: Options<'a>,
    original: Stream,
    now: Stream,
    by_name: HashMap<&'a str, usize>,
}

impl<'a> Walk<'a> {
    /// Before the first block: `streams` are the embeddings, the original's and the compressed.
    pub fn new(
        model: &'a architecture::Model,
        options: Options<'a>,
        [original, now]: [Stream; 2],
    ) -> Walk<'a> {
        let tensors = model.tensors.iter().enumerate();
        Walk {
            by_name: tensors.map(|(i, t)| (t.name.as_str(), i)).collect(),
            model,
            options,
            original,
            now,
        }
    }

    /// Both streams, the original's first.
    pub fn streams(&self) -> [&Stream; 2] {
        [&self.original, &self.now]
    }

    /// Goes through a block.
    ///
    /// # Errors
    /// [`WalkError`].
    pub fn block(
        &mut self,
        number: u32,
        source: &(dyn Original + Sync),
        treat: &mut (dyn Treat + Sync),
    ) -> Result<(), WalkError> {
        let block = Block::new(self.model, number);
        let recorded = self.record(&block, source, treat)?;
        let zeros = |tensor: usize, ty: TensorType| {
            if treat.awaits(tensor) {
                let len = ty.bytes(&self.model.tensors[tensor].shape).unwrap_or(0);
                return Ok(vec![0; len as usize]);
            }
            treat.bytes(tensor, ty)
        };
        let running = block.load(&self.options.cut, |i| treat.ty(i), &zeros)?;
        let mut runner = Runner::new(&running, &block, &self.options.cut)?;
        let inputs = runner.inputs().to_vec();
        for (at, input) in inputs.iter().enumerate() {
            let tensors = self.awaiting(&block, input, treat);
            if tensors.is_empty() {
                continue;
            }
            let drifts = self.drifts(&mut runner, at, (&recorded, treat.widest(&tensors)))?;
            let made = treat
                .layer(&tensors, &drifts)
                .map_err(WalkError::Treatment)?;
            for (tensor, bytes) in tensors.iter().zip(made) {
                let name = block.name_here(&self.model.tensors[*tensor].name);
                running.replace_bytes(&name, &bytes)?;
            }
        }
        runner.advance(&mut self.now)?;
        self.original = recorded.behind;
        Ok(())
    }

    fn stream(&self, width: usize) -> std::io::Result<Stream> {
        Stream::new(self.original.rows(), width, self.options.scratch)
    }

    /// Tensors that read an input and are treated for it.
    fn awaiting(
        &self,
        block: &Block<'_>,
        input: &LinearInput,
        treat: &(dyn Treat + Sync),
    ) -> Vec<usize> {
        let names = input.readers.iter().map(|r| block.name_there(&r.weight));
        let tensors = names.filter_map(|n| self.by_name.get(n.as_str()).copied());
        tensors.filter(|i| treat.awaits(*i)).collect()
    }

    /// Runs the original's block over all tokens and keeps what its layers read.
    fn record(
        &self,
        block: &Block<'_>,
        source: &(dyn Original + Sync),
        treat: &(dyn Treat + Sync),
    ) -> Result<Recorded, WalkError> {
        let model = block.load(&self.options.cut, |i| source.ty(i), &|i, ty| {
            source.bytes(i, ty)
        })?;
        let mut runner = Runner::new(&model, block, &self.options.cut)?;
        let inputs = runner.inputs().to_vec();
        let behind = runner.behind;
        let mut recorded = Recorded {
            inputs: Vec::new(),
            behind: self.stream(self.original.width())?,
        };
        for input in &inputs {
            // What experts read of one another has no counterpart where others were chosen.
            let is_read = input.slices == 1 && !self.awaiting(block, input, treat).is_empty();
            let kept = is_read.then(|| self.stream(input.width));
            recorded.inputs.push(kept.transpose()?);
        }
        let is_kept = |i: usize| recorded.inputs[i].is_some() || i == behind;
        let wanted: Vec<bool> = (0..inputs.len()).map(is_kept).collect();
        let cut = &self.options.cut;
        for batch in cut.batches(0..cut.sequences(&self.original)) {
            let rows = self.original.read(batch.rows.start, batch.rows.len())?;
            runner.run(&batch, &rows, &wanted, &mut |seen| {
                let stream = match &mut recorded.inputs[seen.input] {
                    Some(stream) => stream,
                    None => &mut recorded.behind,
                };
                Ok(stream.write(batch.rows.start, seen.values)?)
            })?;
        }
        Ok(recorded)
    }

    /// What the readers of an input read in both models.
    fn drifts(
        &self,
        runner: &mut Runner<'_>,
        at: usize,
        (recorded, widest): (&Recorded, usize),
    ) -> Result<Vec<Drift>, WalkError> {
        let input = runner.inputs()[at].clone();
        let alone = Drift::bytes(input.width, widest).saturating_mul(input.slices as u64);
        let sums = if alone > MOST_SUMS { 1 } else { input.slices };
        let mut drifts = vec![Drift::new(input.width, widest); sums];
        let wanted: Vec<bool> = (0..runner.inputs().len()).map(|i| i == at).collect();
        let cut = &self.options.cut;
        for batch in cut.batches(0..cut.sequences(&self.original)) {
            let (first, count) = (batch.rows.start, batch.rows.len());
            let rows = self.now.read(first, count)?;
            let original = recorded.inputs[at].as_ref();
            let original = original.map(|s| s.read(first, count)).transpose()?;
            runner.run(&batch, &rows, &wanted, &mut |seen| {
                let rows = Rows {
                    original: original.as_deref().unwrap_or(seen.values),
                    now: seen.values,
                };
                Ok(add(&mut drifts, rows, seen.slices, input.width)?)
            })?;
        }
        Ok(drifts)
    }
}

/// What the original's layers read, by input, and the stream behind the block.
struct Recorded {
    inputs: Vec<Option<Stream>>,
    behind: Stream,
}

/// Adds rows to the sums of the slices that they go to.
fn add(
    drifts: &mut [Drift],
    rows: Rows<'_>,
    slices: Option<&[Vec<u32>]>,
    width: usize,
) -> Result<(), MethodError> {
    let Some(slices) = slices else {
        return drifts[0].add(rows);
    };
    let shared = drifts.len() == 1;
    for (slice, routed) in slices.iter().enumerate() {
        if routed.is_empty() {
            continue;
        }
        let pick = |values: &[f32]| -> Vec<f32> {
            let row = |r: &u32| &values[*r as usize * width..][..width];
            routed.iter().flat_map(row).copied().collect()
        };
        let (original, now) = (pick(rows.original), pick(rows.now));
        drifts[if shared { 0 } else { slice }].add(Rows {
            original: &original,
            now: &now,
        })?;
    }
    Ok(())
}
