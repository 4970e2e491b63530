//! Generates text: samples tokens one after another and returns their text as it comes.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::context::{BatchToken, Context};
use super::error::LlamaError;
use super::reading::{Passage, Wanted};
use super::sampler::Sampler;
pub use super::sampler::Sampling;
use super::vocabulary::Token;

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The model ended its text.
    End,
    /// As many tokens as were asked for.
    Length,
    /// The context is full.
    ContextFull,
    /// The callback said so.
    Caller,
}

/// What was generated, and how fast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The tokens, without the one that ended the text.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub stop: Stop,
    /// Tokens of the prompt and behind it that the context has read.
    pub read: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time to evaluate the prompt.
    pub prompt_time: Duration,
    /// Time from there to the end.
    pub generation_time: Duration,
}

/// Continues a prompt by up to `n` tokens in sequence 0 of the context, which is cleared first.
///
/// `on_text` gets each piece of text as soon as its bytes form whole characters.
///
/// # Errors
/// A prompt that is empty or longer than the context, or llama.cpp fails.
pub fn generate(
    context: &mut Context<'_>,
    prompt: &[Token],
    n: usize,
    sampling: &Sampling,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, LlamaError> {
    context.clear();
    generate_behind(context, (prompt, 0), n, sampling, on_text)
}

/// As [`generate`], where sequence 0 has the first `kept` tokens of the prompt already. They are fewer than the prompt.
///
/// # Errors
/// As [`generate`].
pub fn generate_behind(
    context: &mut Context<'_>,
    (prompt, kept): (&[Token], usize),
    n: usize,
    sampling: &Sampling,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Generated, LlamaError> {
    let start = Instant::now();
    evaluate_behind(context, prompt, kept)?;
    let mut sampler = Sampler::new(sampling)?;
    // Also the end of the prompt's computation: reading the logits waits for it.
    let mut next = sampler.sample(context.try_logits()?)?;
    let prompt_time = start.elapsed();
    let start = Instant::now();

    let model = context.model();
    let mut text = Utf8Stream::default();
    let mut tokens = Vec::new();
    let mut read = prompt.len();
    let stop = loop {
        if tokens.len() == n {
            break Stop::Length;
        }
        if model.is_end(next) {
            break Stop::End;
        }
        tokens.push(next);
        let piece = text.push(&model.piece(next, false)?);
        if !piece.is_empty() && on_text(&piece).is_break() {
            break Stop::Caller;
        }
        if tokens.len() == n {
            break Stop::Length;
        }
        let position = prompt.len() + tokens.len() - 1;
        if position >= context.n_ctx() as usize {
            break Stop::ContextFull;
        }
        context.decode(&[BatchToken {
            token: next,
            position: position as i32,
            sequence: 0,
            logits: true,
        }])?;
        read += 1;
        next = sampler.sample(context.try_logits()?)?;
    };
    let rest = text.finish();
    if !rest.is_empty() && stop != Stop::Caller {
        // The text is over either way.
        let _ = on_text(&rest);
    }
    Ok(Generated {
        tokens,
        stop,
        read,
        prompt_tokens: prompt.len(),
        prompt_time,
        generation_time: start.elapsed(),
    })
}

/// Evaluates a prompt in sequence 0, with logits for its last token only.
pub(crate) fn evaluate_prompt(
    context: &mut Context<'_>,
    prompt: &[Token],
) -> Result<(), LlamaError> {
    context.clear();
    evaluate_behind(context, prompt, 0)
}

/// As [`evaluate_prompt`], where the first tokens are there already.
fn evaluate_behind(
    context: &mut Context<'_>,
    prompt: &[Token],
    kept: usize,
) -> Result<(), LlamaError> {
    if context.model().encodes() {
        return Err(LlamaError::Encoder);
    }
    let limit = i64::from(context.n_ctx());
    if prompt.is_empty() || prompt.len() as i64 > limit {
        return Err(LlamaError::Batch {
            what: "the length of the prompt in tokens",
            found: prompt.len() as i64,
            limit,
        });
    }
    let kept = kept.min(prompt.len() - 1);
    let rest = Passage {
        tokens: &prompt[kept..],
        position: kept,
        sequence: 0,
    };
    for batch in rest.batches(context.n_batch(), Wanted::Last) {
        context.decode(&batch)?;
    }
    Ok(())
}

/// Bytes in, whole characters out.
#[derive(Debug, Default)]
pub(super) struct Utf8Stream {
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Adds bytes and takes what is complete. Bytes that can't be UTF-8 become `U+FFFD`.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut out = String::new();
        let mut used = 0;
        for chunk in self.pending.utf8_chunks() {
            out.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            // An invalid end may only be an unfinished character.
            if used + invalid.len() == self.pending.len() && unfinished(invalid) {
                break;
            }
            if !invalid.is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
                used += invalid.len();
            }
        }
        self.pending.drain(..used);
        out
    }

    /// What is left when no more bytes come.
    pub(super) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

fn unfinished(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(e) if e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_come_out_whole() {
        let mut stream = Utf8Stream::default();
        let bytes = "aé🦀".as_bytes();
        let out: Vec<String> = bytes.iter().map(|b| stream.push(&[*b])).collect();
        assert_eq!(out, ["a", "", "é", "", "", "", "🦀"]);
        assert_eq!(stream.push(&[b'x', 0xff, b'y', 0xe2, 0x82]), "x\u{fffd}y");
        assert_eq!(stream.finish(), "\u{fffd}");
    }
}
