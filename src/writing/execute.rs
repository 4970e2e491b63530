//! Carrying a plan out: jobs of whole chunks or whole factorizations, in parallel and in order.

use std::borrow::Cow;
use std::ops::{Deref, Range};

use dwindle_formats::container::{
    ChunkGeometry, ContainerWriter, EncodedChunk, Form, Part, StoredPlan, WriteError,
};

use super::admitted::admitted;
use super::division::{OutputFile, part_of};
use super::factored::Factorizer;
use super::inputs::Inputs;
use super::ordered::ordered;
use super::resources::Options;
use super::rounding::Rounder;
use super::transform::{ErrorSums, store_rows};
use crate::checkpoint::{Changed, SourceFile};
use crate::llama::admission::Refusal;
use crate::plan::{Plan, Step, Subject, TensorError, TransformError, Treatment};

/// Mapped source bytes of one tensor that may stay in memory while it is read.
const RELEASE_EVERY: u64 = 64 << 20;

/// Why a plan was not carried out. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum PipelineError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Changed(#[from] Changed),
    #[error("the file could not be run: {0}")]
    Refused(#[from] Refusal),
}

/// What was written.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Summary {
    /// Bytes of the file, or of all its parts.
    pub bytes: u64,
    /// Tensors that an earlier, killed run had already finished.
    pub resumed_tensors: usize,
    /// Whether a killed run with another plan, checkpoint or version has left an unfinished file, which
    /// was not used.
    pub began_anew: bool,
    /// One entry a tensor that this run made, in file order.
    pub tensors: Vec<TensorSummary>,
}

impl Summary {
    fn add(&mut self, part: Summary) {
        self.bytes += part.bytes;
        self.resumed_tensors += part.resumed_tensors;
        self.began_anew |= part.began_anew;
        self.tensors.extend(part.tensors);
    }
}

/// What became of one tensor.
#[derive(Debug, Clone, serde::Serialize)]
pub struct TensorSummary {
    /// Its name.
    pub name: String,
    /// How it was made, such as `quantize`.
    pub method: String,
    /// Types of its parts.
    pub types: Vec<String>,
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

/// Carries a plan out and writes its files, or goes on where a killed run with the same inputs
/// stopped. None has its name before all are complete.
///
/// # Errors
/// [`PipelineError`]; existing files at the destinations are then untouched.
pub fn compress(
    plan: &Plan,
    inputs: &Inputs<'_>,
    files: &[OutputFile],
    options: Options,
    progress: Progress<'_>,
) -> Result<Summary, PipelineError> {
    let Subject { source, .. } = inputs.subject;
    admitted(plan)?;
    let workshop = Workshop {
        plan,
        inputs,
        options,
        factorizer: Factorizer::new(plan, inputs),
        rounder: Rounder::new(inputs.subject),
    };
    let written = files.iter().map(|file| workshop.write(file, progress));
    let written: Vec<Written> = written.collect::<Result<_, _>>()?;
    source.files().iter().try_for_each(SourceFile::check)?;
    let mut whole = Summary::default();
    for part in written {
        whole.add(part.finish::<PipelineError>()?);
    }
    Ok(whole)
}

/// What jobs are done with.
struct Workshop<'a> {
    plan: &'a Plan,
    inputs: &'a Inputs<'a>,
    options: Options,
    factorizer: Factorizer<'a>,
    rounder: Rounder<'a>,
}

impl<'a> Workshop<'a> {
    /// Writes one file, all but its name.
    fn write(&self, file: &OutputFile, progress: Progress<'_>) -> Result<Written, PipelineError> {
        let (plan, options) = (self.plan, self.options);
        let Subject { model, source, .. } = self.inputs.subject;
        let mut fingerprint = self.inputs.fingerprint(plan, options);
        let steps = file.steps.clone();
        if steps != (0..plan.steps.len()) {
            fingerprint = fingerprint.with(format!("{steps:?}").as_bytes());
        }
        let stored = part_of(&plan.stored(), &steps);
        let metadata = file.metadata.clone();
        let key = fingerprint.finish();
        let writer = ContainerWriter::create(&file.path, metadata, stored.clone(), &key)?;
        let left = steps.start + writer.resumed_tensors()..steps.end;
        let jobs = jobs(plan, self.inputs, options.threads, left);
        let output = Output {
            writer,
            stored,
            first: steps.start,
            options,
            progress,
        };
        let mut read = 0;
        let after = |job: &Job, bytes| {
            read += bytes;
            if job.last || read > RELEASE_EVERY {
                model.tensors[job.step].release(source);
                read = 0;
            }
        };
        let work = |job: &Job| {
            let made = self.make(job);
            made.map_err(TensorError::of::<TransformError>(
                &model.tensors[job.step].name,
            ))
            .map_err(PipelineError::from)
        };
        run(output, &jobs, work, after)
    }

    fn make(&self, job: &Job) -> Result<Made<'a>, TransformError> {
        let parts = &self.plan.steps[job.step].stored.parts;
        if let Work::Chunk(chunk) = job.work {
            let (bytes, sums) = self.chunk(job.step, chunk)?;
            return Ok((vec![chunk_of(&parts[0], bytes, self.options)], sums));
        }
        if let Some((payloads, sums)) = self.inputs.fitted.and_then(|f| f.get(job.step)) {
            return Ok((chunks_of(parts, payloads, self.options), sums));
        }
        let made = self.factorizer.make(job.step)?;
        Ok((chunks_of(parts, &made.parts, self.options), made.sums))
    }

    /// A chunk of a dense tensor.
    fn chunk(&self, step: usize, chunk: u64) -> Result<(Cow<'a, [u8]>, ErrorSums), TransformError> {
        let Subject {
            model,
            source,
            measured,
        } = self.inputs.subject;
        let Step { stored, treatment } = &self.plan.steps[step];
        let rows = ChunkGeometry::of(&stored.parts[0]).rows_of(chunk);
        let (tensor, ty) = (&model.tensors[step], stored.parts[0].ty);
        match treatment {
            Treatment::Round => {
                let (bytes, sums) = self.rounder.rows(tensor, ty, rows)?;
                Ok((bytes.into(), sums))
            }
            _ => store_rows(tensor, source, ty, rows, measured.importance),
        }
    }
}

/// Where jobs' results go.
pub(crate) struct Output<'a> {
    pub(crate) writer: ContainerWriter,
    /// What the file has.
    pub(crate) stored: StoredPlan,
    /// The step of its first tensor.
    pub(crate) first: usize,
    pub(crate) options: Options,
    pub(crate) progress: Progress<'a>,
}

/// Pushes what the jobs make into the file.
pub(crate) fn run<'a, E: From<WriteError> + Send>(
    output: Output<'_>,
    jobs: &[Job],
    work: impl Fn(&Job) -> Result<Made<'a>, E> + Sync,
    mut after: impl FnMut(&Job, u64),
) -> Result<Written, E> {
    let Output {
        mut writer,
        stored,
        first,
        options,
        progress,
    } = output;
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
                let made = &stored.tensors[job.step - first];
                let holder = match &made.form {
                    Form::Slice { of, .. } => by_name.get(of.as_str()).copied(),
                    _ => None,
                };
                let relative_error = holder.and_then(|i| writer.error(i)).unwrap_or(own);
                writer.end_tensor(relative_error)?;
                tensors.push(TensorSummary {
                    name: made.name.clone(),
                    method: made.method.clone(),
                    types: made.types().iter().map(ToString::to_string).collect(),
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

fn jobs(plan: &Plan, inputs: &Inputs<'_>, threads: usize, steps: Range<usize>) -> Vec<Job> {
    let is_fitted = |step| inputs.fitted.is_some_and(|f| f.get(step).is_some());
    let mut jobs = Vec::new();
    for step in steps {
        if plan.steps[step].treatment.is_by_rows() && !is_fitted(step) {
            jobs.extend(jobs_by_rows(plan, &inputs.subject, threads, step));
        } else {
            jobs.push(whole_job(plan, step));
        }
    }
    jobs
}

/// All of a tensor at once.
fn whole_job(plan: &Plan, step: usize) -> Job {
    let Step { stored, treatment } = &plan.steps[step];
    let together = match (treatment, treatment.together()) {
        (Treatment::Slice, _) => 0,
        (_, Some(members)) => elements_of(plan, members),
        (_, None) => elements_of(plan, &[step]),
    };
    Job {
        step,
        work: Work::Whole,
        // The matrix and its product in f32, in f64 twice, three squares of the inputs.
        cost: 24 * together + 24 * stored.shape[0].pow(2),
        last: true,
    }
}

/// A tensor chunk by chunk.
fn jobs_by_rows(
    plan: &Plan,
    subject: &Subject<'_>,
    threads: usize,
    step: usize,
) -> impl Iterator<Item = Job> {
    let Step { stored, treatment } = &plan.steps[step];
    let geometry = ChunkGeometry::of(&stored.parts[0]);
    let copied = stored.parts[0].ty == subject.model.tensors[step].source_type(subject.source);
    let row_len = stored.shape[0];
    let square = row_len.pow(2);
    let (values_cost, factoring, factors) = match treatment {
        _ if copied => (0, 0, 0),
        // Values, what the rounding makes of them and its errors; the Gram while it is factored, and its
        // factors, which chunks under way share.
        Treatment::Round => (28, 24 * square, 8 * square / threads.max(1) as u64),
        _ => (8, 0, 0),
    };
    (0..geometry.chunks()).map(move |chunk| {
        let rows = geometry.rows_of(chunk);
        let values = (rows.end - rows.start) * row_len;
        Job {
            step,
            work: Work::Chunk(chunk),
            cost: 2 * geometry.bytes_of(chunk)
                + values_cost * values
                + if chunk == 0 { factoring } else { factors },
            last: chunk + 1 == geometry.chunks(),
        }
    })
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
    payloads: &[impl Deref<Target = [u8]>],
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
