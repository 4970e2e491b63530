//! The original and a copy whose weights are replaced, run side by side over a text.

use std::ops::ControlFlow;

use crate::eval::{Chunks, EvalError, EvalOptions};
use crate::llama::activations::{LinearInput, Probe};
use crate::llama::context::{BatchToken, ContextOptions, default_threads};
use crate::llama::lockstep::{Pair, lockstep};
use crate::llama::model::{LlamaError, Model};
use crate::plan::TensorError;

/// Unused logits that llama.cpp may compute on the way: 512 MiB.
const MAX_LOGITS: usize = 1 << 27;

/// Logits for finding the layers.
const MIN_OUTPUTS: usize = 16;

/// The most sequences of a llama.cpp context.
const MAX_SEQUENCES: usize = 256;

/// What the layers are fitted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FitOptions {
    /// Tokens of a chunk.
    pub ctx: u32,
    /// Chunks, all evaluated at once.
    pub chunks: usize,
    /// Threads, `None` for one per physical core.
    pub threads: Option<u32>,
}

/// A text that layers are fitted on.
#[derive(Debug, Clone)]
pub struct FitText<'a> {
    /// Its words.
    pub words: &'a str,
    /// How much of it is evaluated, and how.
    pub options: FitOptions,
}

/// Why layers can't be fitted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum FitError {
    #[error(transparent)]
    Text(#[from] EvalError),
    #[error(transparent)]
    Llama(#[from] LlamaError),
    #[error(
        "the text has {tokens} tokens, expected at least one chunk of {ctx}; name a longer text"
    )]
    TextTooShort { tokens: usize, ctx: u32 },
    #[error("the model is an encoder, and an encoder's layers can't be fitted one after another")]
    Encoder,
    #[error("the layers of `{architecture}` can't be fitted to its residual stream")]
    Stream { architecture: String },
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Two models of the same layers, and the tokens that both evaluate.
pub(super) struct SideBySide<'m> {
    first: Probe<'m>,
    second: Probe<'m>,
    tokens: Vec<BatchToken>,
}

impl<'m> SideBySide<'m> {
    /// Cuts the text into chunks and makes the contexts.
    pub fn new(
        original: &'m Model,
        running: &'m Model,
        text: &FitText<'_>,
    ) -> Result<SideBySide<'m>, FitError> {
        let chunks = cut(original, text)?;
        let mut tokens = chunks.batch(original, 0..chunks.count, 0..chunks.ctx);
        // Only tokens that need logits reach the last layer's end.
        let stride = (tokens.len() * original.n_vocab())
            .div_ceil(MAX_LOGITS)
            .max(1);
        for (i, token) in tokens.iter_mut().enumerate() {
            token.logits = i % stride == 0;
        }
        let context = ContextOptions {
            ctx: chunks.ctx as u32,
            sequences: chunks.count as u32,
            batch: tokens.len() as u32,
            ubatch: tokens.len() as u32,
            outputs: tokens.len().div_ceil(stride).max(MIN_OUTPUTS) as u32,
            threads: Some(text.options.threads.unwrap_or_else(default_threads)),
            ..ContextOptions::default()
        };
        Ok(SideBySide {
            first: Probe::new(original, &context)?,
            second: Probe::new(running, &context)?,
            tokens,
        })
    }

    /// The inputs of both models' linear layers.
    pub fn inputs(&self) -> &[LinearInput] {
        self.second.inputs()
    }

    /// Which tokens reach the last layer's end.
    pub fn reach_the_end(&self) -> Vec<bool> {
        self.tokens.iter().map(|t| t.logits).collect()
    }

    /// Evaluates both and shows the wanted inputs, ahead of their readers.
    pub fn run(
        &mut self,
        wanted: &[bool],
        observer: &mut dyn FnMut(Pair<'_>) -> Result<(), FitError>,
    ) -> Result<(), FitError> {
        let mut failed = None;
        let shown = lockstep(
            &mut self.first,
            &mut self.second,
            &self.tokens,
            wanted,
            &mut |pair| match observer(pair) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            },
        );
        match failed {
            Some(error) => Err(error),
            None => Ok(shown?),
        }
    }
}

/// Cuts a text into chunks for a model that reads forward.
pub(super) fn cut(model: &Model, text: &FitText<'_>) -> Result<Chunks, FitError> {
    let options = EvalOptions {
        ctx: text.options.ctx.min(model.n_ctx_train()),
        chunks: Some(text.options.chunks.clamp(1, MAX_SEQUENCES)),
        ..EvalOptions::default()
    };
    Chunks::new(model, text.words, &options).map_err(|e| match e {
        EvalError::TextTooShort { tokens, ctx } => FitError::TextTooShort { tokens, ctx },
        EvalError::Encoder => FitError::Encoder,
        other => other.into(),
    })
}
