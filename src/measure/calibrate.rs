//! Runs a model over a text and measures the inputs of its linear layers.

use std::ops::{ControlFlow, Range};
use std::path::Path;

use rayon::{ThreadPool, ThreadPoolBuilder};
use sha2::{Digest as _, Sha256};

use crate::eval::{Chunks, EvalError, EvalOptions};
use crate::llama::activations::{LinearInput, Probe};
use crate::llama::context::{ContextOptions, default_threads};
use crate::llama::model::{LlamaError, Model};
use crate::statistics::{
    Accumulator, Entry, Group, Identity, Provenance, Run, StatisticsWriter, add_panels, cut,
    entries as imatrix_entries, hex, write_imatrix,
};

/// The widest input whose whole Gram matrix is kept (1 GiB in the file). Wider ones are cut into
/// blocks of at most this width.
pub const MAX_GRAM_WIDTH: usize = 16384;

/// Tokens that are evaluated at once, where the context is not longer in an encoder.
const UBATCH: usize = 512;

/// Panels that wait to be added up, in bytes: at least and at most this, else a quarter of the
/// memory.
const WAITING: (u64, u64) = (16 << 20, 1 << 30);

/// How statistics are measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CalibrateOptions {
    /// Tokens of a chunk.
    pub ctx: u32,
    /// Chunks to evaluate, `None` for the whole text.
    pub chunks: Option<usize>,
    /// Bytes for sums and rows in progress. The model is run as often as it takes; an input that
    /// needs more alone is measured alone.
    pub memory: u64,
    /// Threads, `None` for one per physical core.
    pub threads: Option<u32>,
    /// The widest input whose whole Gram matrix is kept, [`MAX_GRAM_WIDTH`] by default.
    pub max_gram_width: usize,
}

impl Default for CalibrateOptions {
    fn default() -> CalibrateOptions {
        CalibrateOptions {
            ctx: 512,
            chunks: None,
            memory: 4 << 30,
            threads: None,
            max_gram_width: MAX_GRAM_WIDTH,
        }
    }
}

/// The files to write. Without `statistics` no products are measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outputs<'a> {
    /// A statistics file.
    pub statistics: Option<&'a Path>,
    /// An importance file as llama-imatrix writes it.
    pub imatrix: Option<&'a Path>,
    /// Whether the importance file has the output layer too, as with llama-imatrix's
    /// `--process-output`.
    pub output_layer: bool,
}

/// How far a calibration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The pass over the text, from 1.
    pub pass: usize,
    /// Passes in all.
    pub passes: usize,
    /// Layer inputs that were evaluated, measured or not, over all chunks and passes.
    pub done: u64,
    /// As many as there will be.
    pub total: u64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Calibration {
    /// Where it comes from.
    pub provenance: Provenance,
    /// The inputs, in the order of evaluation.
    pub groups: Vec<Group>,
    /// How often the model was run over the text.
    pub passes: usize,
    /// Bytes of the statistics file, 0 without one.
    pub bytes: u64,
    /// Slices (experts) that no token reached: weight and number.
    pub unreached: Vec<(String, usize)>,
}

/// Why nothing was measured. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum CalibrateError {
    #[error(transparent)]
    Text(#[from] EvalError),
    #[error(transparent)]
    Llama(#[from] LlamaError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("llama.cpp evaluates no linear layer with a named weight in this model")]
    NoLayers,
    #[error("the input of `{weight}` is not finite: the model's weights are damaged")]
    NotFinite { weight: String },
    #[error("can't start {threads} threads")]
    Threads { threads: usize },
}

/// A text to calibrate on.
#[derive(Debug, Clone, Copy)]
pub struct CalibrationText<'a> {
    /// Its words.
    pub words: &'a str,
    /// Its name in the files.
    pub name: &'a str,
}

/// Runs a model over a text and writes what its linear layers read.
///
/// The text is cut into chunks as llama-imatrix does: `ctx` tokens each, the first of them
/// replaced by the token that begins a text if the model has one, each evaluated for itself. In
/// encoders the last token is replaced likewise.
///
/// # Errors
/// [`CalibrateError`]; existing files are then untouched.
pub fn calibrate(
    model: &Model,
    identity: Identity,
    text: CalibrationText<'_>,
    options: &CalibrateOptions,
    outputs: Outputs<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Calibration, CalibrateError> {
    let eval = EvalOptions {
        ctx: options.ctx,
        chunks: options.chunks,
        batch: UBATCH as u32,
        threads: options.threads,
        ..EvalOptions::default()
    };
    let chunks = Chunks::cut(model, text.words, &eval)?;
    let mut feeder = Feeder::new(model, &chunks, options)?;
    let inputs = feeder.probe.inputs().iter();
    let groups: Vec<Group> = inputs.map(|i| group(i, options.max_gram_width)).collect();
    if groups.is_empty() {
        return Err(CalibrateError::NoLayers);
    }
    let provenance = provenance(identity, text, &chunks, options.ctx);
    let mut results = Results::new(outputs, &provenance, &groups)?;
    let costs: Vec<u64> = groups
        .iter()
        .map(|g| Accumulator::bytes(g.width, g.slices, results.blocks(g)))
        .collect();
    let waiting = (options.memory / 4).clamp(WAITING.0, WAITING.1);
    let passes = passes(&costs, options.memory.saturating_sub(waiting));
    let mut meter = Meter::new(&passes, chunks.count.div_ceil(chunks.group), progress);
    for inputs in &passes {
        let sums = groups[inputs.clone()].iter();
        let sums = sums.map(|g| Accumulator::new(g.width, g.slices, results.blocks(g)));
        let mut pass = Pass {
            first: inputs.start,
            sums: sums.collect(),
            waiting: 0,
            limit: waiting,
        };
        feeder.run(&chunks, &mut pass, &groups, &mut meter)?;
        results.take(&pass, &groups)?;
        meter.pass += 1;
    }
    let (bytes, unreached) = results.finish(&provenance)?;
    Ok(Calibration {
        provenance,
        groups,
        passes: passes.len(),
        bytes,
        unreached,
    })
}

fn provenance(
    identity: Identity,
    text: CalibrationText<'_>,
    chunks: &Chunks,
    ctx: u32,
) -> Provenance {
    Provenance {
        dwindle: env!("CARGO_PKG_VERSION").to_string(),
        model: identity,
        text: text.name.to_string(),
        text_sha256: hex(&Sha256::digest(text.words)),
        tokens: chunks.tokens.len() as u64,
        chunks: chunks.count as u64,
        ctx,
    }
}

/// What becomes of the sums.
struct Results<'a> {
    outputs: Outputs<'a>,
    writer: Option<StatisticsWriter>,
    /// Of the importance matrix.
    entries: Vec<Entry>,
    /// Slices that no token has reached.
    unreached: Vec<(String, usize)>,
}

impl<'a> Results<'a> {
    fn new(
        outputs: Outputs<'a>,
        provenance: &Provenance,
        groups: &[Group],
    ) -> std::io::Result<Results<'a>> {
        let writer = outputs
            .statistics
            .map(|path| StatisticsWriter::create(path, provenance.clone(), groups.to_vec()))
            .transpose()?;
        Ok(Results {
            outputs,
            writer,
            entries: Vec::new(),
            unreached: Vec::new(),
        })
    }

    /// The blocks of an input whose products are summed: none, where no Gram matrix is needed.
    fn blocks<'g>(&self, group: &'g Group) -> &'g [Range<usize>] {
        match self.writer {
            Some(_) => &group.blocks,
            None => &[],
        }
    }

    fn take(&mut self, pass: &Pass, groups: &[Group]) -> std::io::Result<()> {
        for (i, sums) in (pass.first..).zip(&pass.sums) {
            if let Some(writer) = &mut self.writer {
                writer.write(i, sums)?;
            }
            let empty = sums.rows().enumerate().filter(|(_, rows)| *rows == 0);
            let named = empty.map(|(slice, _)| (groups[i].name().to_string(), slice));
            self.unreached.extend(named);
            if self.outputs.imatrix.is_some() {
                let entries = imatrix_entries(&groups[i], sums, self.outputs.output_layer);
                self.entries.extend(entries);
            }
        }
        Ok(())
    }

    /// The bytes of the statistics, and what no token has reached.
    fn finish(self, provenance: &Provenance) -> std::io::Result<(u64, Vec<(String, usize)>)> {
        let bytes = self.writer.as_ref().map_or(0, |w| w.bytes);
        if let Some(path) = self.outputs.imatrix {
            let run = Run {
                dataset: &provenance.text,
                chunks: provenance.chunks as usize,
                ctx: provenance.ctx,
            };
            write_imatrix(path, &self.entries, &run)?;
        }
        if let Some(writer) = self.writer {
            writer.finish()?;
        }
        Ok((bytes, self.unreached))
    }
}

fn group(input: &LinearInput, max_width: usize) -> Group {
    Group {
        weights: input.readers.iter().map(|r| r.weight.clone()).collect(),
        width: input.width,
        slices: input.slices,
        blocks: cut(0..input.width, max_width.max(1)),
    }
}

/// Neighbouring inputs whose sums fit into memory together; one that does not fit stands alone.
fn passes(costs: &[u64], memory: u64) -> Vec<Range<usize>> {
    let mut passes: Vec<Range<usize>> = Vec::new();
    let mut used = 0u64;
    for (i, cost) in costs.iter().enumerate() {
        used = used.saturating_add(*cost);
        match passes.last_mut() {
            Some(pass) if used <= memory => pass.end = i + 1,
            _ => {
                passes.push(i..i + 1);
                used = *cost;
            }
        }
    }
    passes
}

/// Progress over passes of different depth.
struct Meter<'a> {
    pass: usize,
    passes: usize,
    done: u64,
    total: u64,
    report: &'a mut dyn FnMut(Progress),
}

impl<'a> Meter<'a> {
    fn new(
        passes: &[Range<usize>],
        steps: usize,
        report: &'a mut dyn FnMut(Progress),
    ) -> Meter<'a> {
        let inputs: usize = passes.iter().map(|p| p.end).sum();
        Meter {
            pass: 1,
            passes: passes.len(),
            done: 0,
            total: (inputs * steps) as u64,
            report,
        }
    }

    fn step(&mut self, inputs: usize) {
        self.done += inputs as u64;
        (self.report)(Progress {
            pass: self.pass,
            passes: self.passes,
            done: self.done,
            total: self.total,
        });
    }
}

/// The inputs that are measured in one pass.
struct Pass {
    first: usize,
    sums: Vec<Accumulator>,
    waiting: u64,
    limit: u64,
}

impl Pass {
    fn add(&mut self, pool: &ThreadPool) {
        pool.install(|| add_panels(&mut self.sums));
        self.waiting = 0;
    }
}

/// Chunks of a text into a model.
struct Feeder<'m> {
    probe: Probe<'m>,
    pool: ThreadPool,
    model: &'m Model,
    /// Tokens of each sequence that are evaluated at once.
    step: usize,
}

impl<'m> Feeder<'m> {
    fn new(
        model: &'m Model,
        chunks: &Chunks,
        options: &CalibrateOptions,
    ) -> Result<Feeder<'m>, CalibrateError> {
        // An encoder's tokens see those that follow, so they can't be evaluated in parts.
        let is_encoder = model.add_eos();
        let step = if is_encoder {
            chunks.ctx
        } else {
            chunks.ctx.min(UBATCH)
        };
        let batch = (step * chunks.group) as u32;
        let threads = options.threads.unwrap_or_else(default_threads);
        let probe = Probe::new(
            model,
            &ContextOptions {
                ctx: options.ctx,
                sequences: chunks.group as u32,
                batch,
                ubatch: batch,
                threads: Some(threads),
                ..ContextOptions::default()
            },
        )?;
        let threads = threads as usize;
        let pool = ThreadPoolBuilder::new().num_threads(threads).build();
        Ok(Feeder {
            probe,
            pool: pool.map_err(|_| CalibrateError::Threads { threads })?,
            model,
            step,
        })
    }

    /// Runs the whole text, up to the last input of a pass.
    fn run(
        &mut self,
        chunks: &Chunks,
        pass: &mut Pass,
        groups: &[Group],
        meter: &mut Meter<'_>,
    ) -> Result<(), CalibrateError> {
        let end = pass.first + pass.sums.len();
        let wanted: Vec<bool> = (0..end).map(|i| i >= pass.first).collect();
        for start in (0..chunks.count).step_by(chunks.group) {
            self.probe.clear();
            for begin in (0..chunks.ctx).step_by(self.step) {
                let group = start..(start + chunks.group).min(chunks.count);
                let step = begin..(begin + self.step).min(chunks.ctx);
                let batch = chunks.batch(self.model, group, step);
                let pool = &self.pool;
                self.probe.run(&batch, &wanted, &mut |activation| {
                    pass.waiting += pass.sums[activation.input - pass.first]
                        .push(activation.values, activation.slices);
                    // Threads of llama.cpp wait busily for some time, so the work is better done
                    // after the evaluation, if there is memory for it.
                    if pass.waiting > pass.limit {
                        pass.add(pool);
                    }
                    ControlFlow::Continue(())
                })?;
                pass.add(&self.pool);
            }
            self.check(pass, groups)?;
            meter.step(end);
        }
        pass.sums.iter_mut().for_each(Accumulator::close);
        pass.add(&self.pool);
        self.check(pass, groups)
    }

    fn check(&self, pass: &Pass, groups: &[Group]) -> Result<(), CalibrateError> {
        match pass.sums.iter().position(|s| !s.is_finite()) {
            Some(i) => Err(CalibrateError::NotFinite {
                weight: groups[pass.first + i].name().to_string(),
            }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::passes;

    #[test]
    fn passes_fill_the_memory() {
        assert_eq!(passes(&[3, 3, 3, 3], 6), [0..2, 2..4]);
        assert_eq!(passes(&[3, 9, 3, 3], 6), [0..1, 1..2, 2..4]);
        assert_eq!(passes(&[1, 1], u64::MAX), std::slice::from_ref(&(0..2)));
        assert!(passes(&[], 1).is_empty());
    }
}
