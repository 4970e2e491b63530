//! A plan carried out block by block on a text.

use std::path::Path;

use super::block::Block;
use super::checkpoint::Checkpoint;
use super::cut::Cut;
use super::embedding::{EmbeddingError, streams};
use super::error::WalkError;
use super::fit::Fitting;
use super::journal::Journal;
use super::stream::Stream;
use super::unfitted::Unfitted;
use super::walk::{Options, Walk};
use crate::architecture::{self, Alone, Traits};
use crate::eval::{Chunks, EvalError, EvalOptions};
use crate::llama::context::default_threads;
use crate::llama::model::{LlamaError, Model, Token};
use crate::llama::placement::Placement;
use crate::method::drift::Following;
use crate::plan::{Plan, TensorError};
use crate::writing::{Fitted, Inputs};

/// Why a plan was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum BlockwiseError {
    #[error(transparent)]
    Text(#[from] EvalError),
    #[error(transparent)]
    Llama(#[from] LlamaError),
    #[error(transparent)]
    Embedding(#[from] EmbeddingError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Walk(#[from] WalkError),
    #[error(
        "the blocks of `{architecture}` can't be run one by one, expected one of {known}; choose a preset, and round to the nearest"
    )]
    Blocks { architecture: String, known: String },
    #[error("can't start {threads} threads")]
    Threads { threads: usize },
}

/// A text to walk on.
#[derive(Debug, Clone)]
pub struct Words<'a> {
    /// The text.
    pub words: &'a str,
    /// Tokens of a sequence.
    pub ctx: u32,
    /// Sequences that layers are fitted to.
    pub chunks: usize,
    /// Threads, `None` for one per physical core.
    pub threads: Option<u32>,
    /// The devices to run on.
    pub placement: &'a Placement,
}

/// A text as whole sequences of tokens, and how they are cut.
#[derive(Debug, Clone)]
pub struct Sequences {
    /// One sequence after another.
    pub tokens: Vec<Token>,
    /// Sequences that the text has.
    pub available: usize,
    /// How they are cut.
    pub cut: Cut,
    /// The text as its evaluation cuts it.
    pub chunks: Chunks,
}

impl Sequences {
    /// Cuts a text for a model, of which only the vocabulary is loaded.
    ///
    /// # Errors
    /// A text that is too short, a model that is an encoder, or llama.cpp's words.
    pub fn of(model: &architecture::Model, text: &Words<'_>) -> Result<Sequences, BlockwiseError> {
        check(model)?;
        let vocabulary = Model::load_vocabulary("the checkpoint", &model.metadata)?;
        let longest = number(model, "context_length");
        let longest = longest.map_or(u32::MAX, |n| u32::try_from(n).unwrap_or(u32::MAX));
        let options = EvalOptions {
            ctx: text.ctx.min(longest),
            chunks: Some(text.chunks),
            ..EvalOptions::default()
        };
        let chunks = Chunks::new(&vocabulary, text.words, &options)?;
        let batch = chunks.batch(&vocabulary, 0..chunks.count, 0..chunks.ctx);
        Ok(Sequences {
            tokens: batch.iter().map(|t| t.token).collect(),
            available: chunks.available,
            cut: Cut {
                ctx: chunks.ctx,
                threads: text.threads.unwrap_or_else(default_threads),
                placement: text.placement.clone(),
            },
            chunks,
        })
    }
}

/// Refuses a model whose blocks can't be run one by one.
///
/// # Errors
/// [`BlockwiseError::Blocks`].
pub fn check(model: &architecture::Model) -> Result<(), BlockwiseError> {
    if Traits::of(&model.architecture).alone != Alone::No {
        return Ok(());
    }
    Err(BlockwiseError::Blocks {
        architecture: model.architecture.clone(),
        known: Traits::names(|t| t.alone != Alone::No),
    })
}

/// A number of the model's own metadata.
fn number(model: &architecture::Model, key: &str) -> Option<u64> {
    let key = format!("{}.{key}", model.architecture);
    model.metadata.get(&key)?.as_u64()
}

/// The blocks of a model.
pub(super) fn blocks_of(model: &architecture::Model) -> u32 {
    number(model, "block_count").unwrap_or(0) as u32
}

/// Threads for work that is not llama.cpp's.
///
/// # Errors
/// They can't be started.
pub fn pool(threads: u32) -> Result<rayon::ThreadPool, BlockwiseError> {
    let threads = threads as usize;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build()
        .map_err(|_| BlockwiseError::Threads { threads })
}

/// Where a walk keeps what it needs.
#[derive(Clone, Copy, Default)]
pub struct Places<'a> {
    /// A folder for streams, where they are not to be in memory.
    pub scratch: Option<&'a Path>,
    /// Where blocks are kept that are made.
    pub journal: Option<&'a Journal>,
}

/// Takes over the blocks that an earlier run has made. Gives the first that is to be made.
fn resume(
    journal: &Journal,
    blocks: u32,
    fitting: &mut Fitting<'_>,
    streams: &mut [Stream; 2],
) -> Result<u32, BlockwiseError> {
    let made = journal.made().min(blocks);
    let read = (0..made).map(|number| journal.read(number));
    let Some(all) = read.collect::<Option<Vec<_>>>() else {
        return Ok(0);
    };
    // Nothing is behind the last block that anybody reads.
    if made == 0
        || made < blocks
            && !journal
                .read_streams(made, streams)
                .map_err(WalkError::from)?
    {
        return Ok(0);
    }
    all.into_iter().for_each(|made| fitting.take(made));
    Ok(made)
}

/// Treats the layers of a plan one after the other, for the inputs that the sequences give. `done` is
/// called with the blocks that were worked on and their number.
///
/// # Errors
/// [`BlockwiseError`].
pub fn fit(
    plan: &Plan,
    inputs: &Inputs<'_>,
    text: &Sequences,
    (following, places): (Following, Places<'_>),
    done: &mut (dyn FnMut(u32, u32) + Send),
) -> Result<(Fitted, Vec<Unfitted>), BlockwiseError> {
    let subject = &inputs.subject;
    let model = subject.model;
    let blocks = blocks_of(model);
    pool(text.cut.threads)?.install(|| {
        let mut fitting = Fitting::new(plan, inputs, following);
        fitting.prepare()?;
        let source = Checkpoint::new(*subject);
        let options = Options {
            cut: text.cut.clone(),
            scratch: places.scratch,
        };
        let mut streams = streams(plan, inputs, &text.tokens, places.scratch)?;
        let journal = places.journal;
        let first = journal.map_or(Ok(0), |j| resume(j, blocks, &mut fitting, &mut streams))?;
        let mut walk = Walk::new(model, options, streams);
        for block in first..blocks {
            walk.block(block, &source, &mut fitting)?;
            if let Some(journal) = journal {
                let made = Block::new(model, block);
                let streams = (block + 1 < blocks).then(|| walk.streams());
                journal.keep(block, &fitting.made(made.tensors()), streams)?;
                if let Some(made) = journal.read(block) {
                    fitting.take(made);
                }
            }
            done(block + 1, blocks);
        }
        Ok(fitting.finish())
    })
}
