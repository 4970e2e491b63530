//! What the first block reads: rows of the embedding, the original's and the compressed model's.

use std::collections::BTreeMap;
use std::path::Path;

use dwindle_formats::gguf::TensorType;

use super::stream::Stream;
use crate::architecture::{ModelTensor, Root, Traits};
use crate::ggml;
use crate::llama::model::Token;
use crate::plan::{Plan, Subject, TensorError, TransformError, Treatment};
use crate::writing::{Factorizer, Inputs, Rounder, store_rows};

/// Rows that are looked up at a time.
const ROWS: usize = 256;

/// The name of the tensor.
pub const NAME: &str = "token_embd.weight";

/// Both streams before the first block.
///
/// # Errors
/// Values that can't be read or written in the plan's type, or a file that can't be made.
pub fn streams(
    plan: &Plan,
    inputs: &Inputs<'_>,
    tokens: &[Token],
    scratch: Option<&Path>,
) -> Result<[Stream; 2], EmbeddingError> {
    let subject = &inputs.subject;
    let position = subject.model.tensors.iter().position(|t| t.name == NAME);
    let step = position.ok_or(EmbeddingError::Missing)?;
    let tensor = &subject.model.tensors[step];
    let failed = TensorError::of::<TransformError>(NAME);
    let mut places: BTreeMap<Token, Vec<usize>> = BTreeMap::new();
    for (row, token) in tokens.iter().enumerate() {
        places.entry(*token).or_default().push(row);
    }
    let width = tensor.row_len() as usize;
    let stream = || Stream::new(tokens.len(), width, scratch);
    let mut streams = [stream()?, stream()?];
    let lookup = Lookup::new(plan, inputs, step).map_err(&failed)?;
    let all: Vec<(Token, Vec<usize>)> = places.into_iter().collect();
    for some in all.chunks(ROWS) {
        let rows: Vec<u64> = some.iter().map(|(token, _)| *token as u64).collect();
        let mut original = original(subject, tensor, &rows).map_err(&failed)?;
        multiply(&mut original, subject);
        let mut now = lookup.rows(tensor, &rows).map_err(&failed)?;
        multiply(&mut now, subject);
        for (i, (_, places)) in some.iter().enumerate() {
            let row = i * width..(i + 1) * width;
            for place in places {
                streams[0].write(*place, &original[row.clone()])?;
                streams[1].write(*place, &now[row.clone()])?;
            }
        }
    }
    tensor.release(subject.source);
    Ok(streams)
}

/// The original's stream before the first block.
///
/// # Errors
/// Values that can't be read, or a file that can't be made.
pub fn streams_of(
    subject: &Subject<'_>,
    tokens: &[Token],
    scratch: Option<&Path>,
) -> Result<Stream, EmbeddingError> {
    let tensor = subject.tensor(NAME).ok_or(EmbeddingError::Missing)?;
    let mut stream = Stream::new(tokens.len(), tensor.row_len() as usize, scratch)?;
    for (first, tokens) in tokens.chunks(ROWS).enumerate() {
        let rows: Vec<u64> = tokens.iter().map(|t| *t as u64).collect();
        let mut values = original(subject, tensor, &rows).map_err(TensorError::of(NAME))?;
        multiply(&mut values, subject);
        stream.write(first * ROWS, &values)?;
    }
    tensor.release(subject.source);
    Ok(stream)
}

/// The rows of tokens in an embedding that ggml rounds to a type.
///
/// # Errors
/// Values that can't be read or written.
pub fn looked_up(
    subject: &Subject<'_>,
    tensor: usize,
    ty: TensorType,
    tokens: &[Token],
) -> Result<Vec<f32>, TransformError> {
    let tensor = &subject.model.tensors[tensor];
    let rows: Vec<u64> = tokens.iter().map(|t| *t as u64).collect();
    let mut values = original(subject, tensor, &rows)?;
    let bytes = ggml::quantized(ty, &values, tensor.row_len() as usize, None)?;
    ggml::dequantize(ty, &bytes, &mut values)?;
    multiply(&mut values, subject);
    Ok(values)
}

/// Does to rows of the embedding what the graph does before the first block.
fn multiply(values: &mut [f32], subject: &Subject<'_>) {
    if Traits::of(&subject.model.architecture).root == Root::No {
        return;
    }
    let width = subject.tensor(NAME).map_or(1, ModelTensor::row_len);
    let root = (width as f32).sqrt();
    values.iter_mut().for_each(|v| *v *= root);
}

/// Why there are no streams.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum EmbeddingError {
    #[error("the model has no tensor `{NAME}`")]
    Missing,
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

fn original(
    subject: &Subject<'_>,
    tensor: &ModelTensor,
    rows: &[u64],
) -> Result<Vec<f32>, TransformError> {
    let mut values = Vec::new();
    for row in rows {
        values.extend(subject.rows(tensor, *row..*row + 1)?);
    }
    Ok(values)
}

/// The compressed embedding.
enum Lookup<'a> {
    Stored(&'a Inputs<'a>, TensorType),
    Rounded(Box<Rounder<'a>>, TensorType),
    Made(Vec<f32>),
}

impl<'a> Lookup<'a> {
    fn new(plan: &Plan, inputs: &'a Inputs<'a>, step: usize) -> Result<Lookup<'a>, TransformError> {
        let ty = plan.steps[step].stored.parts[0].ty;
        Ok(match &plan.steps[step].treatment {
            Treatment::Store => Lookup::Stored(inputs, ty),
            Treatment::Round => Lookup::Rounded(Box::new(Rounder::new(inputs.subject)), ty),
            _ => Lookup::Made(Factorizer::new(plan, inputs).make(step)?.values),
        })
    }

    fn rows(&self, tensor: &ModelTensor, rows: &[u64]) -> Result<Vec<f32>, TransformError> {
        let width = tensor.row_len() as usize;
        match self {
            Lookup::Rounded(rounder, ty) => rounder.looked_up(tensor, *ty, rows),
            Lookup::Made(values) => {
                let row = |r: &u64| &values[*r as usize * width..][..width];
                Ok(rows.iter().flat_map(row).copied().collect())
            }
            Lookup::Stored(inputs, ty) => {
                let mut values = vec![0f32; rows.len() * width];
                for (out, row) in values.chunks_mut(width).zip(rows) {
                    let Subject {
                        source, measured, ..
                    } = inputs.subject;
                    let (bytes, _) =
                        store_rows(tensor, source, *ty, *row..*row + 1, measured.importance)?;
                    ggml::dequantize(*ty, &bytes, out)?;
                }
                Ok(values)
            }
        }
    }
}
