//! Saves what a context keeps of a text, and goes on from there.

use std::path::Path;

use dwindle_formats::packed::{MAGIC, Packed};
use dwindle_formats::state::{Form, Part, Rows, Section, State, read, tokens};

use super::error::CacheError;
use super::files::{How, pack_bytes, unpack_bytes};
use crate::kv::codebook::Codebook;
use crate::kv::{KvError, Target, Turns, Way, pack};
use crate::llama::context::{BatchToken, Context};
use crate::llama::model::Token;
use crate::mapped::Mapping;

/// Tokens that a context has read, without reading them again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The tokens.
    pub tokens: Vec<Token>,
    /// What llama.cpp restores.
    bytes: Vec<u8>,
    /// Whether layers with a sliding window have forgotten the beginning, so that it can't be cut shorter.
    is_moved: bool,
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
    let bytes = context.sequence_state(0);
    let state = read(&bytes).map_err(KvError::from)?;
    let form = Form::Sequence { version: 4 };
    let file = state.rewrapped(&bytes, form, text.to_vec());
    let file = file.ok_or(CacheError::NoTokens)?;
    let file = match is_packed(path) {
        true => pack_bytes(&file, how)?,
        false => file,
    };
    dwindle_formats::output::write(path, &file)?;
    Ok(file.len() as u64)
}

/// Reads a saved session, packed or not, and brings it into the form that the context has. The context is empty then.
///
/// # Errors
/// [`CacheError`]: it is none, or another model's.
pub fn load_session(
    context: &mut Context<'_>,
    path: &Path,
    codebook: Option<&Codebook>,
) -> Result<Session, CacheError> {
    let file = Mapping::open(path)?;
    let own = own_form(context)?;
    let target = target(&own);
    let bytes = match file.starts_with(&MAGIC) {
        true => {
            let packed = Packed::read(&file).map_err(KvError::from)?;
            check(&packed.state, context, &own)?;
            unpack_bytes(&file, codebook, &target)?
        }
        false => {
            let state = read(&file).map_err(KvError::from)?;
            check(&state, context, &own)?;
            match shape(&state, Part::clone) == shape(&own, Part::clone) && state.form.says_turns()
            {
                true => file.to_vec(),
                false => {
                    let mut packed = Vec::new();
                    pack(
                        &file,
                        Way::Lossless,
                        super::CHUNK,
                        None,
                        &mut packed,
                        &mut |_| (),
                    )?;
                    unpack_bytes(&packed, None, &target)?
                }
            }
        }
    };
    let state = read(&bytes).map_err(KvError::from)?;
    let saved = saved(&state)?;
    let bytes = state.rewrapped(&bytes, Form::Bytes { sequence: 0 }, Vec::new());
    Ok(Session {
        is_moved: is_moved(&state),
        tokens: saved,
        bytes: bytes.ok_or(CacheError::OtherForm("its version is older"))?,
    })
}

/// The tokens that a state holds: at least one. llama.cpp may have saved more, of which the last was not read.
fn saved(state: &State) -> Result<Vec<Token>, CacheError> {
    let saved = tokens(&state.tokens).ok_or(CacheError::NoTokens)?;
    let held = match state.sections.first() {
        Some(Section::Attention(a)) => a.streams.iter().map(|s| s.positions.len()).sum(),
        _ => saved.len(),
    };
    let saved = saved.get(..held).filter(|t| !t.is_empty());
    Ok(saved.ok_or(CacheError::NoTokens)?.to_vec())
}

impl Session {
    /// Puts the session into sequence 0, as far as it and a prompt have the same tokens. Gives how many the context has then:
    /// fewer than the prompt, since something must be said of its last token.
    ///
    /// # Errors
    /// llama.cpp refuses it.
    pub fn restore(
        &self,
        context: &mut Context<'_>,
        prompt: &[Token],
    ) -> Result<usize, CacheError> {
        let same = self
            .tokens
            .iter()
            .zip(prompt)
            .take_while(|(a, b)| a == b)
            .count();
        let kept = same.min(prompt.len().saturating_sub(1));
        context.clear();
        if kept == 0 || (self.is_moved && kept < self.tokens.len()) {
            return Ok(0);
        }
        context.restore_sequence(0, &self.bytes)?;
        if context.forget_from(0, kept) {
            return Ok(kept);
        }
        context.clear();
        Ok(0)
    }
}

/// What the context's own state looks like, by one token.
fn own_form(context: &mut Context<'_>) -> Result<State, CacheError> {
    context.clear();
    let token = context.model().bos().unwrap_or(0);
    context.decode(&[BatchToken {
        token,
        position: 0,
        sequence: 0,
        logits: true,
    }])?;
    let bytes = context.sequence_state(0);
    context.clear();
    Ok(read(&bytes).map_err(KvError::from)?)
}

/// Whether a section lacks the first positions.
fn is_moved(state: &State) -> bool {
    state.sections.iter().any(|section| match section {
        Section::Attention(a) => {
            let positions = a.streams.iter().flat_map(|s| &s.positions);
            positions.min().is_some_and(|first| *first > 0)
        }
        Section::Recurrent(_) => false,
    })
}

fn rows(state: &State) -> Option<&Rows> {
    match state.sections.first()? {
        Section::Attention(a) => a.streams.iter().find_map(|s| s.rows.as_ref()),
        Section::Recurrent(_) => None,
    }
}

fn target(own: &State) -> Target {
    let rows = rows(own);
    let streams = match own.sections.first() {
        Some(Section::Attention(attention)) => Some(attention.streams.len()),
        _ => None,
    };
    Target {
        ty: rows.and_then(|r| Some(r.keys.first()?.ty)),
        is_transposed: rows.map(|r| r.is_transposed),
        turns: rows.map_or(Turns::Fitting, |r| Turns::Of([r.key_turn, r.value_turn])),
        streams,
        version: Some(4),
    }
}

/// Whether it is a text's of such a model: the context has room for it and keeps the same of each token, and its cells are
/// those of its tokens.
fn check(state: &State, context: &Context<'_>, own: &State) -> Result<(), CacheError> {
    let expected = context.model().architecture().unwrap_or_default();
    if let Form::Session { architecture, .. } = &state.form
        && *architecture != expected
    {
        let found = architecture.clone();
        return Err(CacheError::OtherArchitecture { found, expected });
    }
    let width = |part: &Part| part.width;
    if shape(state, width) != shape(own, width) {
        return Err(CacheError::OtherForm(
            "layers, their widths or their kinds differ; it was saved of another model",
        ));
    }
    let count = saved(state)?.len();
    if count > context.n_ctx() as usize {
        let ctx = context.n_ctx();
        return Err(CacheError::TooLong { tokens: count, ctx });
    }
    for (i, section) in state.sections.iter().enumerate() {
        let Section::Attention(attention) = section else {
            continue;
        };
        let mut streams = attention.streams.iter().filter(|s| s.rows.is_some());
        let mut positions = streams.next().map_or(Vec::new(), |s| s.positions.clone());
        positions.sort_unstable();
        // Layers with a window may have forgotten the beginning.
        let first = if i == 0 {
            0
        } else {
            count.saturating_sub(positions.len())
        };
        let are_all = positions
            .iter()
            .copied()
            .eq((first..count).map(|p| p as i32));
        if !are_all || streams.next().is_some() {
            return Err(CacheError::OtherForm(
                "its cells are not those of its tokens",
            ));
        }
    }
    Ok(())
}

/// What a section of attention keeps of each token: whether there are coordinates, something of each layer's keys, and of its
/// values.
type Shape<T> = (bool, Vec<T>, Vec<T>);

/// What is kept of each token: of each section whether cells have coordinates, and something of each part.
fn shape<T>(state: &State, of: impl Fn(&Part) -> T) -> Vec<Option<Shape<T>>> {
    let sections = state.sections.iter().map(|section| match section {
        Section::Attention(attention) => {
            let rows = attention.streams.iter().find_map(|s| s.rows.as_ref());
            let all = |parts: &[Part]| parts.iter().map(&of).collect();
            let (keys, values) =
                rows.map_or((Vec::new(), Vec::new()), |r| (all(&r.keys), all(&r.values)));
            Some((attention.has_coordinates, keys, values))
        }
        Section::Recurrent(_) => None,
    });
    sections.collect()
}
