//! Brings saved states into the form that a context takes.

use std::path::Path;

use dwindle_formats::packed::{MAGIC, Packed};
use dwindle_formats::state::{Form, Part, Rows, Section, State, read, tokens};

use super::error::CacheError;
use super::files::unpack_bytes;
use super::session::Session;
use crate::kv::codebook::Codebook;
use crate::kv::{KvError, Target, Turns, Way, pack};
use crate::llama::context::{BatchToken, Context};
use crate::llama::model::Token;
use crate::mapped::Mapping;

/// What states a context takes.
#[derive(Debug, Clone)]
pub struct Receiver {
    own: State,
    architecture: String,
    ctx: usize,
}

impl Receiver {
    /// What this context takes, as a sequence shows that is empty before and after.
    ///
    /// # Errors
    /// llama.cpp fails.
    pub fn of(context: &mut Context<'_>, sequence: usize) -> Result<Receiver, CacheError> {
        Ok(Receiver {
            own: own_form(context, sequence)?,
            architecture: context.model().architecture().unwrap_or_default(),
            ctx: context.n_ctx() as usize,
        })
    }

    /// A saved session, packed or not, in that form.
    ///
    /// # Errors
    /// [`CacheError`]: it is none, or another model's.
    pub fn session(&self, file: &[u8], codebook: Option<&Codebook>) -> Result<Session, CacheError> {
        let target = target(&self.own);
        let bytes = match file.starts_with(&MAGIC) {
            true => {
                let packed = Packed::read(file).map_err(KvError::from)?;
                self.check(&packed.state)?;
                unpack_bytes(file, codebook, &target)?
            }
            false => {
                let state = read(file).map_err(KvError::from)?;
                self.check(&state)?;
                match is_as(&state, &self.own) {
                    true => file.to_vec(),
                    false => {
                        let mut packed = Vec::new();
                        let (way, chunk) = (Way::Lossless, super::CHUNK);
                        pack(file, way, chunk, None, &mut packed, &mut |_| ())?;
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

    /// Whether it is a text's of such a model: the context has room for it and keeps the same of each token, and its cells are
    /// those of its tokens.
    fn check(&self, state: &State) -> Result<(), CacheError> {
        let expected = &self.architecture;
        if let Form::Session { architecture, .. } = &state.form
            && architecture != expected
        {
            let (found, expected) = (architecture.clone(), expected.clone());
            return Err(CacheError::OtherArchitecture { found, expected });
        }
        let width = |part: &Part| part.width;
        if shape(state, width) != shape(&self.own, width) {
            return Err(CacheError::OtherForm(
                "layers, their widths or their kinds differ; it was saved of another model",
            ));
        }
        let count = saved(state)?.len();
        if count > self.ctx {
            let ctx = self.ctx;
            return Err(CacheError::TooLong { tokens: count, ctx });
        }
        let mut sections = state.sections.iter().enumerate();
        match sections.all(|(i, section)| is_of(section, count, i == 0)) {
            true => Ok(()),
            false => Err(CacheError::OtherForm(
                "its cells are not those of its tokens",
            )),
        }
    }
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
    context.clear();
    Receiver::of(context, 0)?.session(&file, codebook)
}

/// Whether a section is of a text of so many tokens.
fn is_of(section: &Section, count: usize, is_whole: bool) -> bool {
    let attention = match section {
        Section::Attention(attention) => attention,
        // One state, behind the last token.
        Section::Recurrent { positions, .. } => {
            let last = count
                .checked_sub(1)
                .and_then(|last| i32::try_from(last).ok());
            return positions.len() == 1 && positions.first().copied() == last;
        }
    };
    let mut streams = attention.streams.iter().filter(|s| s.rows.is_some());
    let mut positions = streams.next().map_or(Vec::new(), |s| s.positions.clone());
    positions.sort_unstable();
    // Layers with a window may have forgotten the beginning.
    let first = match is_whole {
        true => 0,
        false => count.saturating_sub(positions.len()),
    };
    let expected = (first..count).map(|p| p as i32);
    positions.into_iter().eq(expected) && streams.next().is_none()
}

/// Whether llama.cpp takes a state as it is, where it has given the other.
fn is_as(state: &State, own: &State) -> bool {
    let rows = |section: &Section| match section {
        Section::Attention(attention) => {
            let turns = attention.streams.iter().find_map(|s| s.rows.as_ref());
            let turns = turns.map(|r| (r.is_transposed, r.key_turn, r.value_turn));
            Some((attention.streams.len(), turns))
        }
        Section::Recurrent { .. } => None,
    };
    let part = |part: &Part| (part.ty, part.width);
    let (all, others) = (state.sections.iter(), own.sections.iter());
    state.form.says_turns()
        && shape(state, part) == shape(own, part)
        && all.map(rows).eq(others.map(rows))
}

/// The tokens that a state holds: at least one. llama.cpp may have saved more, of which the last was not read.
fn saved(state: &State) -> Result<Vec<Token>, CacheError> {
    let saved = tokens(&state.tokens).ok_or(CacheError::NoTokens)?;
    let held = match state.sections.first() {
        Some(Section::Attention(a)) => a.streams.iter().map(|s| s.positions.len()).sum(),
        Some(Section::Recurrent { positions, .. }) => {
            let last = positions.last().map_or(-1, |last| i64::from(*last));
            (last + 1).max(0) as usize
        }
        None => saved.len(),
    };
    let saved = saved.get(..held).filter(|t| !t.is_empty());
    Ok(saved.ok_or(CacheError::NoTokens)?.to_vec())
}

/// What the context's own state looks like, by one token.
fn own_form(context: &mut Context<'_>, sequence: usize) -> Result<State, CacheError> {
    let token = context.model().bos().unwrap_or(0);
    context.decode(&[BatchToken {
        token,
        position: 0,
        sequence: sequence as i32,
        logits: true,
    }])?;
    let bytes = context.sequence_state(sequence);
    context.forget(sequence);
    Ok(read(&bytes).map_err(KvError::from)?)
}

/// Whether what is kept of a text can become what is kept of its beginning.
pub(super) fn can_be_cut(state: &State) -> bool {
    let recurs = |s: &Section| matches!(s, Section::Recurrent { .. });
    !is_moved(state) && !state.sections.iter().any(recurs)
}

/// Whether a section lacks the first positions.
fn is_moved(state: &State) -> bool {
    state.sections.iter().any(|section| match section {
        Section::Attention(a) => {
            let positions = a.streams.iter().flat_map(|s| &s.positions);
            positions.min().is_some_and(|first| *first > 0)
        }
        Section::Recurrent { .. } => false,
    })
}

fn rows(state: &State) -> Option<&Rows> {
    match state.sections.first()? {
        Section::Attention(a) => a.streams.iter().find_map(|s| s.rows.as_ref()),
        Section::Recurrent { .. } => None,
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
        Section::Recurrent { .. } => None,
    });
    sections.collect()
}
