//! Writes a container as a stock file: every tensor dense.

use std::collections::HashMap;
use std::path::Path;

use dwindle_formats::container::{
    ContainerWriter, Digest, Form, Part, StoredPlan, StoredTensor, WriteError,
};

use super::stock::{StockError, StockModel};
use crate::plan::Fingerprint;
use crate::writing::{ErrorSums, Job, Options, Output, Progress, Summary, Work, chunks_of, run};

/// Why a stock file was not written. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The file can't be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A tensor can't be made.
    #[error(transparent)]
    Stock(#[from] StockError),
}

/// Writes a stock file: every tensor dense.
///
/// # Errors
/// [`ExportError`]; an existing file at the destination is then untouched.
pub fn export(
    stock: &StockModel<'_>,
    stored: &StoredPlan,
    content: &Digest,
    destination: &Path,
    options: Options,
    progress: Progress<'_>,
) -> Result<Summary, ExportError> {
    let dense = StoredPlan {
        tensors: stock
            .tensors
            .iter()
            .zip(&stored.tensors)
            .map(|(info, t)| StoredTensor {
                form: Form::Dense,
                parts: vec![Part {
                    name: info.name.clone(),
                    ty: info.ty,
                    shape: info.shape.clone(),
                }],
                ..t.clone()
            })
            .collect(),
    };
    let metadata = stock.metadata.clone();
    let fingerprint = Fingerprint::of_copy(&metadata, content).finish();
    let writer = ContainerWriter::create(destination, metadata, dense.clone(), &fingerprint)?;
    let by_name = stored.by_name();
    let jobs: Vec<Job> = (writer.resumed_tensors()..stock.tensors.len())
        .map(|step| Job {
            step,
            work: Work::Whole,
            cost: working_set(stored, &by_name, step),
            last: true,
        })
        .collect();
    let work = |job: &Job| {
        let parts = &dense.tensors[job.step].parts;
        let chunks = chunks_of(parts, &[stock.tensor(job.step)?], options);
        Ok::<_, ExportError>((chunks, ErrorSums::default()))
    };
    let output = Output {
        writer,
        stored: dense.clone(),
        first: 0,
        options,
        progress,
    };
    let written = run(output, &jobs, work, |_, _| ())?;
    written.finish()
}

/// Bytes in memory while a tensor is made dense: it in f32 and in F16, as it is and in chunks, and
/// what it is multiplied out of, as bytes and in f32.
fn working_set(stored: &StoredPlan, by_name: &HashMap<&str, usize>, step: usize) -> u64 {
    let tensor = &stored.tensors[step];
    let lender = tensor.form.lender().and_then(|name| by_name.get(name));
    let lent = lender.map(|i| &stored.tensors[*i]);
    let parts = [Some(tensor), lent].into_iter().flatten();
    let parts = parts.flat_map(|t| &t.parts);
    let elements = |shape: &[u64]| shape.iter().product::<u64>();
    let factors: u64 = match tensor.form {
        Form::Dense => 0,
        _ => parts.map(|p| 4 * elements(&p.shape) + p.bytes()).sum(),
    };
    16 * elements(&tensor.shape) + factors
}
