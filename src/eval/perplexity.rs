//! Perplexity of a model, and its divergence from a reference.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::cache::{CacheReader, CacheWriter};
use super::chunks::{Chunks, EvalOptions, Evaluator};
use super::softmax::{self, LogProbs};
use super::stats::{Divergence, DivergenceSums, NllSums, Perplexity};
use crate::llama::error::BoxError;
use crate::llama::model::{LlamaError, Model, Token};

/// What [`perplexity`] and [`compare`] measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// How well the model predicts the text.
    pub perplexity: Perplexity,
    /// How far it is from the reference, if there was one.
    pub divergence: Option<Divergence>,
}

/// How far an evaluation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Chunks that are done.
    pub done: usize,
    /// Chunks in all.
    pub chunks: usize,
    /// Perplexity so far.
    pub perplexity: f64,
    /// Mean divergence so far.
    pub kld: Option<f64>,
}

/// A reference whose logits are made when they are asked for.
pub trait Logits {
    /// Tokens of its vocabulary.
    fn n_vocab(&self) -> usize;

    /// The text as it was cut.
    fn chunks(&self) -> &Chunks;

    /// The scored rows of a chunk: [`Chunks::scored`] times the vocabulary.
    ///
    /// # Errors
    /// Any.
    fn chunk(&self, chunk: usize) -> Result<Vec<f32>, BoxError>;
}

/// What a model is compared with.
pub enum Reference<'a> {
    /// A loaded model, evaluated chunk by chunk beside the candidate: nothing is stored.
    Model(&'a Model),
    /// Logits, made chunk by chunk.
    Logits(&'a dyn Logits),
    /// A file that [`write_reference`] wrote, with the key it must have.
    Cache(&'a Path, [u8; 32]),
}

/// Why a text can't be evaluated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum EvalError {
    #[error(transparent)]
    Llama(#[from] LlamaError),
    #[error("a context of {0} tokens can't be evaluated, expected 4 or more")]
    Ctx(u32),
    #[error(
        "the model embeds texts and does not continue them; compare its embeddings with those of a reference"
    )]
    Encoder,
    #[error(
        "the text has {tokens} tokens, expected at least one context of {ctx}; name a longer text, or a smaller context"
    )]
    TextTooShort { tokens: usize, ctx: u32 },
    #[error("no line of the text has {fewest} tokens or more; name a longer text")]
    NoLine { fewest: usize },
    #[error("the model has {found} tokens in its vocabulary, its reference {expected}")]
    Vocabulary { found: usize, expected: usize },
    #[error("the model and its reference cut the text into different tokens")]
    Tokenizer,
    #[error("the model's prediction in chunk {chunk} is not a number: its weights are damaged")]
    NotFinite { chunk: usize },
    #[error("the cached reference `{}` was made from another model, text or context; delete it", .0.display())]
    CacheKey(PathBuf),
    #[error("`{}` holds no predictions and would be overwritten; name another file to keep them in", .0.display())]
    NoCache(PathBuf),
    #[error("the cached reference `{}` is damaged in chunk {chunk}; delete it", path.display())]
    CacheDamaged { path: PathBuf, chunk: usize },
    #[error("can't tell what the reference predicts: {0}")]
    Logits(#[source] BoxError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Measures how well a model predicts a text.
///
/// # Errors
/// The text is shorter than a context, or llama.cpp fails.
pub fn perplexity(
    model: &Model,
    text: &str,
    options: &EvalOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Evaluation, EvalError> {
    let chunks = Chunks::new(model, text, options)?;
    let mut evaluator = Evaluator::new(model, &chunks, options)?;
    let mut sums = NllSums::default();
    for_each_chunk(&chunks, |chunk, place| {
        if place == 0 {
            evaluator.evaluate(&chunks, chunk)?;
        }
        add_nlls(&mut sums, evaluator.chunk(place)?, &chunks, chunk)?;
        progress(Progress {
            done: chunk + 1,
            chunks: chunks.count,
            perplexity: sums.perplexity(),
            kld: None,
        });
        Ok(())
    })?;
    Ok(Evaluation {
        perplexity: sums.finish(options.ctx, chunks.count),
        divergence: None,
    })
}

/// Measures how well a model predicts a text, and how far its predictions are from a reference's.
///
/// # Errors
/// As [`perplexity`]; and the two don't share a vocabulary, or the cache is another's or damaged.
pub fn compare(
    model: &Model,
    reference: &Reference<'_>,
    text: &str,
    options: &EvalOptions,
    progress: &mut dyn FnMut(Progress),
) -> Result<Evaluation, EvalError> {
    let chunks = Chunks::new(model, text, options)?;
    let mut base = Base::new(reference, model, text, &chunks, options)?;
    let mut evaluator = Evaluator::new(model, &chunks, options)?;
    let mut nlls = NllSums::default();
    let mut sums = DivergenceSums::default();
    for_each_chunk(&chunks, |chunk, place| {
        if place == 0 {
            evaluator.evaluate(&chunks, chunk)?;
            if let Base::Model(reference) = &mut base {
                reference.evaluate(&chunks, chunk)?;
            }
        }
        let rows = evaluator.chunk(place)?;
        add_nlls(&mut nlls, rows, &chunks, chunk)?;
        add_divergences(&mut sums, rows, &mut base, &chunks, chunk, place)?;
        progress(Progress {
            done: chunk + 1,
            chunks: chunks.count,
            perplexity: nlls.perplexity(),
            kld: Some(sums.mean_kld()),
        });
        Ok(())
    })?;
    Ok(Evaluation {
        perplexity: nlls.finish(options.ctx, chunks.count),
        divergence: Some(sums.finish(!matches!(base, Base::Cache(_)))),
    })
}

/// Evaluates a reference and writes its predictions to a file for [`Reference::Cache`]: what a
/// divergence needs and no more, under two fifths of `llama-perplexity`'s file. The file appears
/// under its name only when it is complete.
///
/// # Errors
/// As [`perplexity`]; and the file can't be written.
pub fn write_reference(
    model: &Model,
    text: &str,
    options: &EvalOptions,
    path: &Path,
    key: [u8; 32],
    progress: &mut dyn FnMut(Progress),
) -> Result<Evaluation, EvalError> {
    let chunks = Chunks::new(model, text, options)?;
    let mut evaluator = Evaluator::new(model, &chunks, options)?;
    let mut writer = CacheWriter::create(path, key, model.n_vocab(), &chunks)?;
    let mut sums = NllSums::default();
    for_each_chunk(&chunks, |chunk, place| {
        if place == 0 {
            evaluator.evaluate(&chunks, chunk)?;
        }
        let rows = evaluator.chunk(place)?;
        add_nlls(&mut sums, rows, &chunks, chunk)?;
        writer.chunk(rows, chunks.targets(chunk))?;
        progress(Progress {
            done: chunk + 1,
            chunks: chunks.count,
            perplexity: sums.perplexity(),
            kld: None,
        });
        Ok(())
    })?;
    writer.finish()?;
    Ok(Evaluation {
        perplexity: sums.finish(options.ctx, chunks.count),
        divergence: None,
    })
}

/// Calls with each chunk's number and its place in its group.
fn for_each_chunk(
    chunks: &Chunks,
    mut work: impl FnMut(usize, usize) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    (0..chunks.count).try_for_each(|chunk| work(chunk, chunk % chunks.group))
}

fn add_nlls(
    sums: &mut NllSums,
    rows: &[f32],
    chunks: &Chunks,
    chunk: usize,
) -> Result<(), EvalError> {
    let targets = chunks.targets(chunk);
    let n_vocab = rows.len() / targets.len();
    let nlls: Vec<f64> = rows
        .par_chunks(n_vocab)
        .zip(targets)
        .map(|(row, target)| softmax::nll(row, *target as usize))
        .collect();
    if !nlls.iter().all(|nll| nll.is_finite()) {
        return Err(EvalError::NotFinite { chunk });
    }
    // In order, so that the sum does not depend on threads.
    nlls.iter().for_each(|nll| sums.add(*nll));
    Ok(())
}

fn add_divergences(
    sums: &mut DivergenceSums,
    rows: &[f32],
    base: &mut Base<'_>,
    chunks: &Chunks,
    chunk: usize,
    place: usize,
) -> Result<(), EvalError> {
    let targets = chunks.targets(chunk);
    let n_vocab = rows.len() / targets.len();
    let rows = rows.par_chunks(n_vocab).zip(targets);
    let beside = |((row, target), base_row): ((&[f32], &Token), &[f32]), base: &mut LogProbs| {
        base.set(base_row);
        let cosine = softmax::cosine(row, base_row);
        (softmax::divergence(row, base, *target as usize), cosine)
    };
    let found: Vec<_> = match base {
        Base::Model(reference) => rows
            .zip(reference.chunk(place)?.par_chunks(n_vocab))
            .map_init(LogProbs::default, |base, pair| beside(pair, base))
            .collect(),
        Base::Logits(reference) => rows
            .zip(
                reference
                    .chunk(chunk)
                    .map_err(EvalError::Logits)?
                    .par_chunks(n_vocab),
            )
            .map_init(LogProbs::default, |base, pair| beside(pair, base))
            .collect(),
        Base::Cache(reader) => rows
            .zip(reader.chunk(chunk, targets)?)
            .map(|((row, target), base)| (softmax::divergence(row, base, *target as usize), 0.0))
            .collect(),
    };
    if !found.iter().all(|(row, _)| row.kld.is_finite()) {
        return Err(EvalError::NotFinite { chunk });
    }
    found
        .iter()
        .for_each(|(row, cosine)| sums.add(row, *cosine));
    Ok(())
}

/// The reference while it is read.
enum Base<'m> {
    Model(Box<Evaluator<'m>>),
    Logits(&'m dyn Logits),
    Cache(Box<CacheReader>),
}

impl<'m> Base<'m> {
    fn new(
        reference: &Reference<'m>,
        model: &Model,
        text: &str,
        chunks: &Chunks,
        options: &EvalOptions,
    ) -> Result<Base<'m>, EvalError> {
        let same_vocabulary = |expected| {
            let found = model.n_vocab();
            if found == expected {
                Ok(())
            } else {
                Err(EvalError::Vocabulary { found, expected })
            }
        };
        match reference {
            Reference::Model(reference) => {
                same_vocabulary(reference.n_vocab())?;
                if Chunks::new(reference, text, options)? != *chunks {
                    return Err(EvalError::Tokenizer);
                }
                let evaluator = Evaluator::new(reference, chunks, options)?;
                Ok(Base::Model(Box::new(evaluator)))
            }
            Reference::Logits(reference) => {
                same_vocabulary(reference.n_vocab())?;
                if reference.chunks() != chunks {
                    return Err(EvalError::Tokenizer);
                }
                Ok(Base::Logits(*reference))
            }
            Reference::Cache(path, key) => {
                let reader = CacheReader::open(path, *key)?;
                same_vocabulary(reader.n_vocab())?;
                if !reader.holds(chunks) {
                    return Err(EvalError::Tokenizer);
                }
                Ok(Base::Cache(Box::new(reader)))
            }
        }
    }
}
