//! Limits of a request, derived from the model. All are checked before any work.

use super::error::ApiError;
use crate::llama::model::{LlamaError, Model};

/// The largest body and the longest text that are read, however large the context is: a million
/// tokens of usual length. Parsing takes up to sixty times the memory of its body (`[0,0,0]`), and
/// tokenizing that of its text.
const MOST: usize = 4 << 20;

/// Bytes of a body beside what the prompt takes: all other fields.
const BESIDE: usize = 64 << 10;

/// JSON may write one byte as six (`\u0041`).
const ESCAPED: usize = 6;

/// Bytes of a body that a token may take without any text: its number, or its share of a message's
/// frame, indented.
const FRAME: usize = 64;

/// Texts that may end an answer.
const STOPS: usize = 16;

/// Bytes of such a text. Every new token is compared with all of them at each place where one may
/// begin.
const STOP: usize = 256;

/// The limits of one model in one context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    ctx: usize,
    text: usize,
    body: usize,
}

impl Limits {
    /// No text of more bytes than `ctx` times those of the vocabulary's longest token can fit, so
    /// that longer ones need not be tokenized.
    ///
    /// # Errors
    /// The model has no tokenizer.
    pub fn new(model: &Model, ctx: usize) -> Result<Limits, LlamaError> {
        // An unknown character may be one token.
        let mut longest = char::MAX.len_utf8();
        for token in 0..i32::try_from(model.n_vocab()).unwrap_or(i32::MAX) {
            longest = longest.max(model.piece(token, true)?.len());
        }
        Ok(Limits::of(ctx, longest))
    }

    fn of(ctx: usize, longest: usize) -> Limits {
        let per_token = longest.saturating_mul(ESCAPED).max(FRAME);
        Limits {
            ctx,
            text: ctx.saturating_mul(longest).min(MOST),
            body: ctx
                .saturating_mul(per_token)
                .saturating_add(BESIDE)
                .min(MOST),
        }
    }

    /// The same where a request may have many texts of that length.
    pub fn of_many_texts(self) -> Limits {
        Limits { body: MOST, ..self }
    }

    /// Bytes of a body.
    pub fn body(&self) -> usize {
        self.body
    }

    /// Bytes of a text.
    pub fn text(&self) -> usize {
        self.text
    }

    /// Refuses a text that can't fit into the context.
    pub fn check_text(&self, bytes: usize) -> Result<(), ApiError> {
        if bytes > self.text {
            return Err(ApiError::too_many_bytes(bytes, self.text, self.ctx));
        }
        Ok(())
    }

    /// Refuses a text to embed that does not fit into the context.
    pub fn check_length(&self, tokens: usize) -> Result<(), ApiError> {
        match tokens {
            0 => Err(ApiError::field("input", "a text is empty")),
            n if n > self.ctx => Err(ApiError::too_long(n, self.ctx)),
            _ => Ok(()),
        }
    }

    /// Refuses a prompt that does not fit into the context.
    pub fn check_tokens(&self, tokens: usize) -> Result<(), ApiError> {
        if tokens >= self.ctx {
            return Err(ApiError::too_long(tokens, self.ctx));
        }
        if tokens == 0 {
            return Err(ApiError::field("prompt", "the prompt is empty"));
        }
        Ok(())
    }
}

/// Refuses too many and too long stop texts.
pub fn check_stops(stops: &[String]) -> Result<(), ApiError> {
    if stops.len() > STOPS {
        let message = format!("{} stop texts, expected at most {STOPS}", stops.len());
        return Err(ApiError::field("stop", message));
    }
    if let Some(long) = stops.iter().find(|s| s.len() > STOP) {
        let message = format!(
            "a stop text of {} bytes, expected at most {STOP}",
            long.len()
        );
        return Err(ApiError::field("stop", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_fit_is_read() {
        let limits = Limits::of(100, 20);
        assert!(limits.check_text(2000).is_ok());
        assert!(limits.check_text(2001).is_err());
        assert!(limits.body() >= 2000 * ESCAPED);
        assert!(limits.check_tokens(99).is_ok());
        assert!(limits.check_tokens(100).is_err());
        assert!(limits.check_tokens(0).is_err());
    }

    #[test]
    fn no_context_is_so_large_that_there_is_no_limit() {
        let limits = Limits::of(usize::MAX, 4);
        assert_eq!(limits.body(), MOST);
        assert!(limits.check_text(MOST + 1).is_err());
    }
}
