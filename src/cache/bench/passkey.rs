//! Hides a number in a text, and asks for it.

use super::super::error::CacheError;
use crate::llama::context::Context;
use crate::llama::model::{Model, Token};
use crate::llama::reading::{Passage, Wanted};

/// Tokens of an answer.
pub(super) const ANSWER: usize = 8;

/// A number, and the question for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Passkey {
    digits: String,
    sentence: Vec<Token>,
    question: Vec<Token>,
}

impl Passkey {
    /// One of five digits, unlike those of other numbers.
    ///
    /// # Errors
    /// The model has no tokenizer.
    pub fn new(model: &Model, number: usize) -> Result<Passkey, CacheError> {
        // Multiples of a prime look like any numbers.
        let digits = (10_007 + number as u64 * 27_644_437 % 89_989).to_string();
        let sentence =
            format!("\n\nThe pass key is {digits}. Remember it. {digits} is the pass key.\n\n");
        let question = "\n\nWhat is the pass key? The pass key is";
        Ok(Passkey {
            sentence: model.tokenize(&sentence, false, false)?,
            question: model.tokenize(question, false, false)?,
            digits,
        })
    }

    /// Tokens that the question and the answer take.
    pub fn room(&self) -> usize {
        self.question.len() + ANSWER
    }

    /// Puts the number into a text of the same length, after this part of it. Whether there is room.
    pub fn hide(&self, text: &mut [Token], part: f64) -> bool {
        // What stands first, and some of the text, stay.
        let Some(room) = text.len().checked_sub(self.sentence.len() + 8) else {
            return false;
        };
        let at = 4 + (room as f64 * part) as usize;
        text[at..at + self.sentence.len()].copy_from_slice(&self.sentence);
        true
    }

    /// Whether the model says the number behind a text of so many tokens in this sequence.
    ///
    /// # Errors
    /// llama.cpp fails.
    pub fn is_found(
        &self,
        context: &mut Context<'_>,
        sequence: usize,
        position: usize,
    ) -> Result<bool, CacheError> {
        let mut said = Vec::new();
        let mut next = self.question.clone();
        let mut position = position;
        for _ in 0..ANSWER {
            let tokens = Passage {
                tokens: &next,
                position,
                sequence,
            };
            let logits = context.read(tokens, Wanted::Last)?;
            position += next.len();
            let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            let token = best.map_or(0, |(token, _)| token as Token);
            said.extend(context.model().piece(token, false)?);
            next = vec![token];
        }
        let said = String::from_utf8_lossy(&said).into_owned();
        Ok(said.trim_start().starts_with(&self.digits))
    }
}
