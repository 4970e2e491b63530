//! Carrying a plan out: jobs of whole chunks or whole factorizations, in parallel and in order.

use std::borrow::Cow;
use std::path::Path;

use dwindle_formats::container::{
    ChunkGeometry, ContainerWriter, EncodedChunk, Form, Part, StoredPlan, WriteError,
};

use super::admitted::admitted;
use super::factored::Factorizer;
use super::fitted::Fitted;
use super::inputs::Inputs;
use super::ordered::ordered;
use super::rounding::Rounder;
use super::transform::{ErrorSums, store_rows};
use crate::checkpoint::{Changed, SourceFile};
use crate::llama::admission::Refusal;
use crate::plan::{Fingerprint, Plan, Subject, TransformError, Treatment};

/// Mapped source bytes of one tensor that may stay in memory while it is read.
const RELEASE_EVERY: u64 = 64 << 20;

/// How a plan is carried out.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Worker threads.
    pub threads: usize,
    /// Bytes of values and results that may be under way at once, as far as they can be told beforehand;
    /// a job that needs more runs alone. It bounds neither the process nor mapped files.
    pub memory: u64,
    /// Whether payloads may be compressed: in containers, not in stock files.
    pub compress: bool,
}

/// Why a plan was not carried out. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum PipelineError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("tensor `{tensor}`: {source}")]
    Transform {
        tensor: String,
        source: TransformError,
    },
    #[error(transparent)]
    Changed(#[from] Changed),
    #[error("the file could not be run: {0}")]
    Refused(#[from] Refusal),
}

/// What was written.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    /// Bytes of the file.
    pub bytes: u64,
    /// Tensors that an earlier, killed run had already finished.
    pub resumed_tensors: usize,
    /// Whether a killed run with another plan, checkpoint or version has left an unfinished file, which
    /// was not used.
    pub began_anew: bool,
    /// One entry a tensor that this run made, in file order.
    pub tensors: Vec<TensorSummary>,
}

/// What became of one tensor.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TensorSummary {
    /// Its name.
    pub name: String,
    /// Bytes in the file, without padding.
    pub bytes: u64,
    /// Relative error in the Frobenius norm.
    pub relative_error: f32,
}

/// Called with the number of decoded bytes that were written since the last call.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

/// How much of a tensor a job makes.
pub(crate) enum Work {
    /// One chunk of a dense part.
    Chunk(u64),
    /// All of a factored tensor.
    Whole,
}

/// A piece of work whose results are written in one go.
pub(crate) struct Job {
    pub(crate) step: usize,
    pub(crate) work: Work,
    /// Bytes that it takes while it is under way.
    pub(crate) cost: u64,
    /// Whether the tensor ends with it.
    pub(crate) last: bool,
}

/// What a job gives: chunks in file order and the sums of their errors.
type Made<'a> = (Vec<EncodedChunk<'a>>, ErrorSums);

/// Carries a plan out and writes the file, or goes on where a killed run with the same inputs
/// stopped.
///
/// # Errors
/// [`PipelineError`]; an existing file at the destination is then untouched.
pub fn compress(
    plan: &Plan,
    inputs: &Inputs<'_>,
    destination: &Path,
    options: Options,
    progress: Progress<'_>,
) -> Result<Summary, PipelineError> {
    let Inputs {
        subject,
        content,
        fitted,
    } = *inputs;
    let Subject { model, source, .. } = subject;
    admitted(plan)?;
    let fingerprint = Fingerprint::of_plan(plan, model, &subject.measured, content)
        .with(&[u8::from(options.compress)])
        .with(&fitted.map_or([0; 32], Fitted::digest))
        .finish();
    let metadata = plan.metadata.clone();
    let writer = ContainerWriter::create(destination, metadata, plan.stored(), &fingerprint)?;
    let jobs = jobs(plan, inputs, options.threads, writer.resumed_tensors());
    let factorizer = Factorizer::new(plan, inputs);
    let rounder = Rounder::new(subject);
    let work = |job: &Job| {
        let tensor = &model.tensors[job.step];
        let step = &plan.steps[job.step];
        let parts = &step.stored.parts;
        let made = match (&job.work, &step.treatment) {
            (Work::Chunk(chunk), treatment) => {
                let rows = ChunkGeometry::of(&parts[0]).rows_of(*chunk);
                let ty = parts[0].ty;
                let stored = match treatment {
                    Treatment::Round => rounder
                        .rows(tensor, ty, rows)
                        .map(|(bytes, sums)| (bytes.into(), sums)),
                    _ => store_rows(tensor, source, ty, rows, subject.measured.importance),
                };
                stored.map(|(bytes, sums)| (vec![chunk_of(&parts[0], bytes, options)], sums))
            }
            _ => match fitted.and_then(|f| f.get(job.step)) {
                Some((payloads, sums)) => Ok((chunks_of(parts, payloads, options), sums)),
                None => factorizer
                    .make(job.step)
                    .map(|made| (chunks_of(parts, &made.parts, options), made.sums)),
            },
        };
        made.map_err(|source| PipelineError::Transform {
            tensor: tensor.name.clone(),
            source,
        })
    };
    let mut read = 0;
    let written = run(
        writer,
        plan.stored(),
        &jobs,
        options,
        work,
        progress,
        |job, bytes| {
            read += bytes;
            if job.last || read > RELEASE_EVERY {
                model.tensors[job.step].release(source);
                read = 0;
            }
        },
    )?;
    source.files().iter().try_for_each(SourceFile::check)?;
    written.finish()
}

/// Pushes what the jobs make into the file.
pub(crate) fn run<'a, E: From<WriteError> + Send>(
    mut writer: ContainerWriter,
    stored: StoredPlan,
    jobs: &[Job],
    options: Options,
    work: impl Fn(&Job) -> Result<Made<'a>, E> + Sync,
    progress: Progress<'_>,
    mut after: impl FnMut(&Job, u64),
) -> Result<Written, E> {
    let resumed_tensors = writer.resumed_tensors();
    let resumed = stored.tensors[..resumed_tensors].iter();
    progress(resumed.flat_map(|t| &t.parts).map(Part::bytes).sum());
    let mut tensors = Vec::new();
    let mut sums = ErrorSums::default();
    let mut bytes = 0;
    let by_name = stored.by_name();
    ordered(
        jobs,
        options.threads,
        options.memory,
        |job| job.cost,
        work,
        |job, (chunks, piece)| {
            sums.add(piece);
            let mut decoded = 0;
            for chunk in chunks {
                decoded += chunk.decoded_bytes;
                bytes += chunk.stored.len() as u64;
                writer.push(chunk)?;
            }
            progress(decoded);
            after(job, decoded);
            if job.last {
                let own = std::mem::take(&mut sums).relative();
                // What a stack lost is told for all of it.
                let holder = match &stored.tensors[job.step].form {
                    Form::Slice { of, .. } => by_name.get(of.as_str()).copied(),
                    _ => None,
                };
                let relative_error = holder.and_then(|i| writer.error(i)).unwrap_or(own);
                writer.end_tensor(relative_error)?;
                tensors.push(TensorSummary {
                    name: stored.tensors[job.step].name.clone(),
                    bytes: std::mem::take(&mut bytes),
                    relative_error,
                });
            }
            Ok(())
        },
    )?;
    Ok(Written { writer, tensors })
}

/// A file that has no name yet.
pub(crate) struct Written {
    writer: ContainerWriter,
    tensors: Vec<TensorSummary>,
}

impl Written {
    pub(crate) fn finish<E: From<WriteError>>(self) -> Result<Summary, E> {
        let Written { writer, tensors } = self;
        let began_anew = writer.began_anew();
        let resumed_tensors = writer.resumed_tensors() - tensors.len();
        Ok(Summary {
            bytes: writer.finish()?,
            resumed_tensors,
            began_anew,
            tensors,
        })
    }
}

fn jobs(plan: &Plan, inputs: &Inputs<'_>, threads: usize, first: usize) -> Vec<Job> {
    let Inputs {
        subject, fitted, ..
    } = *inputs;
    let Subject { model, source, .. } = subject;
    let mut jobs = Vec::new();
    for (step, s) in plan.steps.iter().enumerate().skip(first) {
        let elements: u64 = s.stored.shape.iter().product();
        let by_rows = matches!(s.treatment, Treatment::Store | Treatment::Round);
        if !by_rows || fitted.is_some_and(|f| f.get(step).is_some()) {
            let side = s.stored.shape[0];
            let together: u64 = match &s.treatment {
                Treatment::Slice => 0,
                Treatment::Joint { members, .. } => elements_of(plan, members),
                Treatment::Multilinear { stack, .. } => elements_of(plan, &stack.members),
                _ => elements,
            };
            jobs.push(Job {
                step,
                work: Work::Whole,
                // The matrix and its product in f32, in f64 twice, three squares of the inputs.
                cost: 24 * together + 24 * side * side,
                last: true,
            });
            continue;
        }
        let geometry = ChunkGeometry::of(&s.stored.parts[0]);
        let copied = s.stored.parts[0].ty == model.tensors[step].source_type(source);
        let square = s.stored.shape[0].pow(2);
        let (values_cost, factoring, factors) = match s.treatment {
            _ if copied => (0, 0, 0),
            // Values, what the rounding makes of them and its errors; the Gram while it is factored, and its
            // factors, which chunks under way share.
            Treatment::Round => (28, 24 * square, 8 * square / threads.max(1) as u64),
            _ => (8, 0, 0),
        };
        for chunk in 0..geometry.chunks() {
            let rows = geometry.rows_of(chunk);
            let values = (rows.end - rows.start) * s.stored.shape[0];
            jobs.push(Job {
                step,
                work: Work::Chunk(chunk),
                cost: 2 * geometry.bytes_of(chunk)
                    + values_cost * values
                    + if chunk == 0 { factoring } else { factors },
                last: chunk + 1 == geometry.chunks(),
            });
        }
    }
    jobs
}

fn elements_of(plan: &Plan, members: &[usize]) -> u64 {
    let elements = |i: &usize| plan.steps[*i].stored.shape.iter().product::<u64>();
    members.iter().map(elements).sum()
}

fn chunk_of<'a>(
    part: &Part,
    bytes: impl Into<Cow<'a, [u8]>>,
    options: Options,
) -> EncodedChunk<'a> {
    if options.compress {
        EncodedChunk::compressed(part.ty, bytes)
    } else {
        EncodedChunk::raw(bytes)
    }
}

pub(crate) fn chunks_of(
    parts: &[Part],
    payloads: &[Vec<u8>],
    options: Options,
) -> Vec<EncodedChunk<'static>> {
    let mut chunks = Vec::new();
    for (part, bytes) in parts.iter().zip(payloads) {
        let geometry = ChunkGeometry::of(part);
        let len = (geometry.chunk_rows * geometry.row_bytes) as usize;
        chunks.extend(
            bytes
                .chunks(len)
                .map(|c| chunk_of(part, c.to_vec(), options)),
        );
    }
    chunks
}
