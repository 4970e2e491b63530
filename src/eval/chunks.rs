//! A text in chunks of the context's length, and their evaluation side by side.

use std::ops::Range;

use crate::llama::context::{BatchToken, Context, ContextOptions, FlashAttention};
use crate::llama::model::{Model, Token};

use super::EvalError;

/// How a text is evaluated. The defaults are those of `llama-perplexity`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalOptions {
    /// Tokens of context.
    pub ctx: u32,
    /// Chunks to evaluate, `None` for the whole text.
    pub chunks: Option<usize>,
    /// Tokens that are submitted at once; several chunks, if they fit.
    pub batch: u32,
    /// Threads, `None` for one per physical core.
    pub threads: Option<u32>,
    /// When to use flash attention.
    pub flash_attention: FlashAttention,
}

impl Default for EvalOptions {
    fn default() -> EvalOptions {
        EvalOptions {
            ctx: 512,
            chunks: None,
            batch: 2048,
            threads: None,
            flash_attention: FlashAttention::Auto,
        }
    }
}

/// A text as chunks of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunks {
    /// One chunk after another.
    pub tokens: Vec<Token>,
    /// Tokens of a chunk.
    pub ctx: usize,
    /// Chunks that are evaluated.
    pub count: usize,
    /// Chunks that the text has.
    pub available: usize,
    /// Chunks that are evaluated side by side.
    pub group: usize,
}

impl Chunks {
    /// Chunks of a text whose tokens are to be predicted.
    ///
    /// # Errors
    /// A model that embeds texts, a text that is too short, or llama.cpp's words.
    pub fn new(model: &Model, text: &str, options: &EvalOptions) -> Result<Chunks, EvalError> {
        if model.embeds() {
            return Err(EvalError::Encoder);
        }
        Chunks::cut(model, text, options)
    }

    /// Chunks of a text, of encoders too.
    ///
    /// # Errors
    /// A text that is too short, or llama.cpp's words.
    pub fn cut(model: &Model, text: &str, options: &EvalOptions) -> Result<Chunks, EvalError> {
        let ctx = options.ctx as usize;
        if ctx < 4 || options.ctx > i32::MAX as u32 / 2 {
            return Err(EvalError::Ctx(options.ctx));
        }
        // llama.cpp's tools drop the newline that ends a file.
        let text = text.strip_suffix('\n').unwrap_or(text);
        let mut tokens = model.tokenize(text, true, false)?;
        let available = tokens.len() / ctx;
        if available == 0 {
            return Err(EvalError::TextTooShort {
                tokens: tokens.len(),
                ctx: options.ctx,
            });
        }
        let count = options.chunks.unwrap_or(available).clamp(1, available);
        tokens.truncate(count * ctx);
        let group = (options.batch as usize / ctx).clamp(1, count);
        Ok(Chunks {
            tokens,
            ctx,
            count,
            available,
            group,
        })
    }

    /// The first position of a chunk whose prediction counts: half of it is only context.
    pub fn first(&self) -> usize {
        self.ctx / 2
    }

    /// Predictions of a chunk that count; the last position's would be of the next chunk.
    pub fn scored(&self) -> usize {
        self.ctx - 1 - self.first()
    }

    /// Some positions of some chunks, each chunk a sequence. Every token needs logits: without it
    /// llama.cpp omits the token from the last layer.
    pub fn batch(
        &self,
        model: &Model,
        chunks: Range<usize>,
        positions: Range<usize>,
    ) -> Vec<BatchToken> {
        let begin = model.bos().filter(|_| model.add_bos());
        let end = model.eos().filter(|_| model.add_eos());
        let mut batch = Vec::with_capacity(chunks.len() * positions.len());
        for (sequence, chunk) in chunks.enumerate() {
            let tokens = &self.tokens[chunk * self.ctx..][..self.ctx];
            for position in positions.clone() {
                let special = match position {
                    0 => begin,
                    p if p + 1 == self.ctx => end,
                    _ => None,
                };
                batch.push(BatchToken {
                    token: special.unwrap_or(tokens[position]),
                    position: position as i32,
                    sequence: sequence as i32,
                    logits: true,
                });
            }
        }
        batch
    }

    /// The tokens that a chunk's scored rows should have predicted.
    pub fn targets(&self, chunk: usize) -> &[Token] {
        let start = chunk * self.ctx + self.first() + 1;
        &self.tokens[start..start + self.scored()]
    }
}

/// Evaluates chunks, a group at a time.
#[derive(Debug)]
pub(super) struct Evaluator<'m> {
    context: Context<'m>,
    n_vocab: usize,
    bos: Option<Token>,
    /// Rows of a chunk that is longer than a batch.
    gathered: Vec<f32>,
    /// Rows of each chunk: the scored ones and the last.
    rows: usize,
    is_gathered: bool,
}

impl<'m> Evaluator<'m> {
    pub fn new(
        model: &'m Model,
        chunks: &Chunks,
        options: &EvalOptions,
    ) -> Result<Evaluator<'m>, EvalError> {
        let total = chunks.group * chunks.ctx;
        let context = Context::new(
            model,
            &ContextOptions {
                ctx: options.ctx,
                sequences: chunks.group as u32,
                batch: total.min(options.batch.max(1) as usize) as u32,
                threads: options.threads,
                flash_attention: options.flash_attention,
                ..ContextOptions::default()
            },
        )?;
        Ok(Evaluator {
            n_vocab: model.n_vocab(),
            bos: model.bos().filter(|_| model.add_bos()),
            gathered: Vec::new(),
            rows: chunks.ctx - chunks.first(),
            is_gathered: total > context.n_batch(),
            context,
        })
    }

    /// Evaluates the group that begins with chunk `start`; its rows are then in [`Self::chunk`].
    pub fn evaluate(&mut self, chunks: &Chunks, start: usize) -> Result<(), EvalError> {
        self.context.clear();
        self.gathered.clear();
        let group = chunks.group.min(chunks.count - start);
        let step = chunks.ctx.min(self.context.n_batch());
        for begin in (0..chunks.ctx).step_by(step) {
            let end = (begin + step).min(chunks.ctx);
            let mut batch = Vec::with_capacity(group * step);
            for sequence in 0..group {
                let tokens = &chunks.tokens[(start + sequence) * chunks.ctx..];
                for (position, token) in tokens.iter().enumerate().take(end).skip(begin) {
                    let bos = self.bos.filter(|_| position == 0);
                    batch.push(BatchToken {
                        token: bos.unwrap_or(*token),
                        position: position as i32,
                        sequence: sequence as i32,
                        logits: position >= chunks.first(),
                    });
                }
            }
            self.context.decode(&batch)?;
            if self.is_gathered {
                self.gathered.extend_from_slice(self.context.try_logits()?);
            }
        }
        Ok(())
    }

    /// The scored rows of a chunk of the group, by its place in the group.
    ///
    /// # Errors
    /// Waiting for the computation fails.
    pub fn chunk(&mut self, place: usize) -> Result<&[f32], EvalError> {
        let len = self.n_vocab * self.rows;
        let all = if self.is_gathered {
            &self.gathered
        } else {
            self.context.try_logits()?
        };
        Ok(&all[place * len..(place + 1) * len - self.n_vocab])
    }
}
