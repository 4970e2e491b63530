//! Saves what a context keeps of a text, and goes on from there.

use std::path::Path;

use dwindle_formats::state::{Form, read};

use super::error::CacheError;
use super::files::{How, pack_bytes};
use crate::kv::KvError;
use crate::llama::context::Context;
use crate::llama::model::Token;

/// Tokens that a context has read, without reading them again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// What llama.cpp restores.
    pub(super) bytes: Vec<u8>,
    /// Whether layers with a sliding window have forgotten the beginning, so that it can't be cut shorter.
    pub(super) is_moved: bool,
}

/// Whether a file's name says that it is packed.
pub fn is_packed(path: &Path) -> bool {
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("dwkv"))
}

/// Saves what the context has of a text, of which it has read these tokens: as llama.cpp saves a sequence or, where the
/// name ends in `.dwkv`, packed. Gives the file's bytes.
///
/// # Errors
/// [`CacheError`]; an existing file is then untouched.
pub fn save_session(
    context: &mut Context<'_>,
    text: &[Token],
    path: &Path,
    how: How<'_>,
) -> Result<u64, CacheError> {
    let file = saved_state(context, 0, text)?;
    let file = match is_packed(path) {
        true => pack_bytes(&file, how)?,
        false => file,
    };
    dwindle_formats::output::write(path, &file)?;
    Ok(file.len() as u64)
}

/// What the context has of a sequence, as llama.cpp saves it with the tokens that it has read.
///
/// # Errors
/// llama.cpp fails.
pub(super) fn saved_state(
    context: &mut Context<'_>,
    sequence: usize,
    text: &[Token],
) -> Result<Vec<u8>, CacheError> {
    let bytes = context.sequence_state(sequence);
    let state = read(&bytes).map_err(KvError::from)?;
    let form = Form::Sequence { version: 4 };
    let file = state.rewrapped(&bytes, form, text.to_vec());
    file.ok_or(CacheError::NoTokens)
}

impl Session {
    /// Puts the session into a sequence, as far as it and a prompt have the same tokens. Gives how many the sequence has then:
    /// fewer than the prompt, since something must be said of its last token.
    ///
    /// # Errors
    /// llama.cpp refuses it.
    pub fn restore(
        &self,
        context: &mut Context<'_>,
        sequence: usize,
        prompt: &[Token],
    ) -> Result<usize, CacheError> {
        let kept = common(&self.tokens, prompt).min(prompt.len().saturating_sub(1));
        context.forget(sequence);
        if kept == 0 || (self.is_moved && kept < self.tokens.len()) {
            return Ok(0);
        }
        context.restore_sequence(sequence, &self.bytes)?;
        if context.forget_from(sequence, kept) {
            return Ok(kept);
        }
        context.forget(sequence);
        Ok(0)
    }
}

/// How many tokens two texts begin with alike.
pub(super) fn common(a: &[Token], b: &[Token]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
