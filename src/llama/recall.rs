//! What a memory of earlier texts does for texts that begin alike.

use super::context::Context;
use super::vocabulary::Token;

/// A memory of texts that a context has read.
pub trait Recall {
    /// Puts what is remembered of the beginning of a prompt into a sequence, which is empty. Gives the tokens that the
    /// sequence has then: fewer than the prompt, since something must be said of its last token.
    fn recall(&mut self, context: &mut Context<'_>, sequence: usize, prompt: &[Token]) -> usize;

    /// Remembers a sequence, which has read these tokens and will be forgotten.
    fn keep(&mut self, context: &mut Context<'_>, sequence: usize, text: &[Token]);
}

/// Remembers nothing.
pub struct Forgetful;

impl Recall for Forgetful {
    fn recall(&mut self, _: &mut Context<'_>, _: usize, _: &[Token]) -> usize {
        0
    }

    fn keep(&mut self, _: &mut Context<'_>, _: usize, _: &[Token]) {}
}
