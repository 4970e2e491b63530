//! Continues texts from states, and says how far what follows is from what followed the original's.

use rayon::prelude::*;

use super::error::CacheError;
use crate::eval::exact_divergence;
use crate::llama::context::Context;
use crate::llama::model::Token;
use crate::llama::reading::{Passage, Wanted};

/// A text of which the first part was read: what the model kept of it, and what it said of the rest.
#[derive(Debug, Clone)]
pub struct Window {
    /// The state behind the first part.
    pub state: Vec<u8>,
    /// The rest.
    pub rest: Vec<Token>,
    /// Tokens of the first part.
    pub read: usize,
    /// Logits of the rest: a row for each token.
    pub logits: Vec<f32>,
}

/// A context in which texts are continued from states.
pub struct Continuations<'c, 'm> {
    context: &'c mut Context<'m>,
}

impl<'c, 'm> Continuations<'c, 'm> {
    /// Uses the first sequence of a context.
    pub fn new(context: &'c mut Context<'m>) -> Continuations<'c, 'm> {
        Continuations { context }
    }

    /// Reads a text of which the last `rest` tokens are what is said of.
    ///
    /// # Errors
    /// llama.cpp's words.
    pub fn window(&mut self, tokens: &[Token], rest: usize) -> Result<Window, CacheError> {
        let (first, rest) = tokens.split_at(tokens.len() - rest);
        self.context.forget(0);
        self.context
            .read(Passage::first(0, first), Wanted::Nothing)?;
        let state = self.context.sequence_state(0);
        let logits = self.context.read(behind(first.len(), rest), Wanted::All)?;
        Ok(Window {
            state,
            rest: rest.to_vec(),
            read: first.len(),
            logits,
        })
    }

    /// The divergence of each prediction of the rest from the original's, when the first part is this state.
    ///
    /// # Errors
    /// llama.cpp refuses the state, or fails.
    pub fn divergences(&mut self, window: &Window, state: &[u8]) -> Result<Vec<f64>, CacheError> {
        self.context.restore_sequence(0, state)?;
        let rest = behind(window.read, &window.rest);
        let logits = self.context.read(rest, Wanted::All)?;
        let n_vocab = logits.len() / window.rest.len().max(1);
        let rows = window
            .logits
            .par_chunks(n_vocab)
            .zip(logits.par_chunks(n_vocab));
        Ok(rows
            .map(|(base, row)| exact_divergence(base, row))
            .collect())
    }
}

fn behind(position: usize, tokens: &[Token]) -> Passage<'_> {
    Passage {
        position,
        ..Passage::first(0, tokens)
    }
}

/// The mean of divergences, and its standard error.
pub fn mean(divergences: &[f64]) -> (f64, f64) {
    let n = divergences.len().max(1) as f64;
    let mean = divergences.iter().sum::<f64>() / n;
    let squares: f64 = divergences.iter().map(|d| (d - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0) / n).sqrt())
}
