//! Reads texts into sequences of a context, as many tokens at once as it takes.

use super::context::{BatchToken, Context};
use super::error::LlamaError;
use super::vocabulary::Token;

/// Of which tokens of a text logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Of none.
    Nothing,
    /// Of the last.
    Last,
    /// Of all.
    All,
}

/// A text that stands in a sequence.
#[derive(Debug, Clone, Copy)]
pub struct Passage<'a> {
    /// Its tokens.
    pub tokens: &'a [Token],
    /// The position of the first.
    pub position: usize,
    /// The sequence.
    pub sequence: usize,
}

impl<'a> Passage<'a> {
    /// A text that begins a sequence.
    pub fn first(sequence: usize, tokens: &'a [Token]) -> Passage<'a> {
        Passage {
            tokens,
            position: 0,
            sequence,
        }
    }

    /// The text in batches of at most `size` tokens.
    pub fn batches(self, size: usize, wanted: Wanted) -> impl Iterator<Item = Vec<BatchToken>> {
        let size = size.max(1);
        let end = self.position + self.tokens.len();
        let pieces = self.tokens.chunks(size).enumerate();
        pieces.map(move |(i, piece)| {
            let positions = self.position + i * size..;
            let tokens = positions.zip(piece).map(|(position, token)| BatchToken {
                token: *token,
                position: position as i32,
                sequence: self.sequence as i32,
                logits: match wanted {
                    Wanted::Nothing => false,
                    Wanted::Last => position + 1 == end,
                    Wanted::All => true,
                },
            });
            tokens.collect()
        })
    }
}

impl Context<'_> {
    /// Reads a text. Gives the logits that are wanted, one row of the vocabulary's length for each token.
    ///
    /// # Errors
    /// llama.cpp fails, or the text does not fit.
    pub fn read(&mut self, passage: Passage<'_>, wanted: Wanted) -> Result<Vec<f32>, LlamaError> {
        let mut logits = Vec::new();
        for batch in passage.batches(self.n_batch(), wanted) {
            self.decode(&batch)?;
            if batch.iter().any(|token| token.logits) {
                logits.extend_from_slice(self.try_logits()?);
            }
        }
        Ok(logits)
    }
}
