//! Finds out whether quantized rows are rotated, where a state's version does not say it.

use dwindle_formats::state::{Part, Rows, Section, State};

use crate::cells::Cells;
use crate::error::KvError;
use crate::parts::{attentions, turns_of, widths};
use crate::transform::{Encoder, Transform};

/// Cells that are tried.
const TRIED: usize = 128;

/// What tells how rows are rotated.
pub(crate) enum Known<'a> {
    /// Nothing, and nobody needs to know.
    Needless,
    /// Nothing.
    Not,
    /// A codebook.
    By(&'a Encoder<'a>),
}

/// Whether quantized rows may be rotated and the version does not say it.
pub(crate) fn is_unknown(state: &State) -> bool {
    let quantized = |rows: &Rows| {
        let mut parts = rows.keys.iter().chain(&rows.values);
        parts.any(|p| p.ty.is_quantized())
    };
    !state.form.says_turns() && rows(state).any(quantized)
}

/// Writes into a state that does not say it how its rows are rotated: as the codebook
/// takes fewer bytes for them, since rows that are rotated otherwise than it expects vary in all directions. Gives what was
/// found.
///
/// # Errors
/// Nothing tells, without a codebook.
pub(crate) fn settle(
    state: &mut State,
    bytes: &[u8],
    known: &Known<'_>,
) -> Result<Option<[u32; 2]>, KvError> {
    let encoder = match known {
        _ if !is_unknown(state) => return Ok(None),
        Known::Needless => return Ok(None),
        Known::Not => return Err(KvError::UnknownTurns),
        Known::By(encoder) => encoder,
    };
    let found = likelier(state, bytes, encoder)?;
    turn(state, found);
    Ok(Some(found))
}

/// Sets how the rows are rotated that a codebook is of. Heads of layers with a window may have another size.
pub(crate) fn turn(state: &mut State, turns: [u32; 2]) {
    if let Some(Section::Attention(attention)) = state.sections.first_mut() {
        for rows in attention.streams.iter_mut().filter_map(|s| s.rows.as_mut()) {
            [rows.key_turn, rows.value_turn] = turns;
        }
    }
}

/// Whether quantized rows of layers with a window may be rotated and nothing says it.
pub(crate) fn are_windows_unknown(state: &State) -> bool {
    let quantized = |section: &Section| match section {
        Section::Attention(attention) => {
            let rows = attention.streams.iter().filter_map(|s| s.rows.as_ref());
            let mut parts = rows.flat_map(|r| r.keys.iter().chain(&r.values));
            parts.any(|p| p.ty.is_quantized())
        }
        Section::Recurrent { .. } => false,
    };
    !state.form.says_turns() && state.sections.iter().skip(1).any(quantized)
}

fn likelier(state: &State, bytes: &[u8], encoder: &Encoder<'_>) -> Result<[u32; 2], KvError> {
    let codebook = encoder.codebook;
    let heads = [codebook.geometry.key_head, codebook.geometry.value_head];
    let Some(Section::Attention(attention)) = state.sections.first() else {
        return Ok([0, 0]);
    };
    let stream = attention.streams.iter().find(|s| s.rows.is_some());
    let Some((stream, rows)) = stream.and_then(|s| Some((s, s.rows.as_ref()?))) else {
        return Ok([0, 0]);
    };
    codebook
        .geometry
        .check(&widths(&rows.keys), &widths(&rows.values))?;
    let of =
        |part: Option<&Part>, kind: usize| part.map_or(0, |part| turns_of(part.ty, heads)[kind]);
    let rotated = [of(rows.keys.first(), 0), of(rows.values.first(), 1)];
    let transform = Transform {
        codebook,
        step: codebook.step_of_cost(0.004),
    };
    let count = stream.positions.len();
    let taken = |turns: [u32; 2]| {
        let rows = Rows {
            key_turn: turns[0],
            value_turn: turns[1],
            ..rows.clone()
        };
        let range = count.saturating_sub(TRIED)..count;
        let cells = Cells::read(bytes, &rows, &stream.positions, range)?;
        let coded = transform.encode(&encoder.analyse(cells));
        Ok::<usize, KvError>(coded.map_or(usize::MAX, |bytes| bytes.len()))
    };
    if rotated == [0, 0] {
        return Ok(rotated);
    }
    let [turned, plain] = [taken(rotated)?, taken([0, 0])?];
    match (turned, plain) {
        (turned, plain) if less_by_far(turned, plain) => Ok(rotated),
        (turned, plain) if less_by_far(plain, turned) => Ok([0, 0]),
        _ => Err(KvError::UnknownTurns),
    }
}

/// Whether bytes are fewer than others by more than chance.
fn less_by_far(bytes: usize, others: usize) -> bool {
    bytes < others - others / 50
}

fn rows(state: &State) -> impl Iterator<Item = &Rows> {
    attentions(state)
        .flat_map(|a| &a.streams)
        .filter_map(|s| s.rows.as_ref())
}
