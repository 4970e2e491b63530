//! Finds out whether quantized rows are rotated, where a state's version does not say it.

use dwindle_formats::state::{Part, Rows, Section, State};

use crate::cells::Cells;
use crate::error::KvError;
use crate::pack::{Way, attentions, turns_of, widths};
use crate::transform::{Encoder, Transform};

/// Cells that are tried.
const TRIED: usize = 128;

/// Whether quantized rows may be rotated and the version does not say it.
pub(crate) fn is_unknown(state: &State) -> bool {
    let quantized = |rows: &Rows| {
        let mut parts = rows.keys.iter().chain(&rows.values);
        parts.any(|p| p.ty.is_quantized())
    };
    !state.form.says_turns() && rows(state).any(quantized)
}

/// Writes into a state that does not say it how its rows are rotated, as far as a way to pack needs to know: as the codebook
/// takes fewer bytes for them, since rows that are rotated otherwise than it expects vary in all directions. Gives what was
/// found.
///
/// # Errors
/// Nothing tells, without a codebook.
pub(crate) fn settle(
    state: &mut State,
    bytes: &[u8],
    way: Way<'_>,
) -> Result<Option<[u32; 2]>, KvError> {
    if !is_unknown(state) || matches!(way, Way::Lossless) {
        return Ok(None);
    }
    let Way::Transform(encoder, _) = way else {
        return Err(KvError::UnknownTurns);
    };
    let found = likelier(state, bytes, encoder)?;
    turn(state, found);
    Ok(Some(found))
}

/// Sets how all rows are rotated that are not carried bit by bit.
pub(crate) fn turn(state: &mut State, turns: [u32; 2]) {
    if let Some(Section::Attention(attention)) = state.sections.first_mut() {
        for rows in attention.streams.iter_mut().filter_map(|s| s.rows.as_mut()) {
            [rows.key_turn, rows.value_turn] = turns;
        }
    }
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
    match taken(rotated)? < taken([0, 0])? {
        true => Ok(rotated),
        false => Ok([0, 0]),
    }
}

fn rows(state: &State) -> impl Iterator<Item = &Rows> {
    attentions(state)
        .flat_map(|a| &a.streams)
        .filter_map(|s| s.rows.as_ref())
}
