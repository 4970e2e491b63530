//! A state without its keys and values, as few bytes: what a packed file says of the state that was packed.

use super::cursor::Cursor;
use super::read::read_from;
use super::{Section, State, StateError};

/// Bytes, and where they stand in a state.
pub type Piece<'a> = (usize, &'a [u8]);

/// Everything of a state but the rows of its attention: pieces of it, each with its place.
///
/// `bytes` are those that the state was read from.
pub fn describe(state: &State, bytes: &[u8]) -> Vec<u8> {
    let frame = state.clone().lay_out();
    let mut pieces: Vec<Piece<'_>> = frame
        .pieces
        .iter()
        .map(|(at, piece)| (*at, piece.as_slice()))
        .collect();
    for section in &state.sections {
        if let Section::Recurrent { range, .. } = section {
            pieces.push((range.start, &bytes[range.clone()]));
        }
    }
    pieces.sort_unstable_by_key(|(at, _)| *at);
    let mut out = Vec::new();
    out.extend((frame.len as u64).to_le_bytes());
    out.extend((pieces.len() as u32).to_le_bytes());
    for (at, piece) in &pieces {
        out.extend((*at as u64).to_le_bytes());
        out.extend((piece.len() as u32).to_le_bytes());
    }
    for (_, piece) in &pieces {
        out.extend(*piece);
    }
    out
}

/// The state that [`describe`] described, and its pieces by place: what recurrent layers keep is among them.
///
/// # Errors
/// [`StateError`]: the description is damaged.
pub fn described(description: &[u8]) -> Result<(State, Vec<Piece<'_>>), StateError> {
    let whole = [(0, description)];
    let mut cursor = Cursor::new(&whole, description.len());
    let len = cursor.u64("the length of the state")?;
    let count = cursor.u32("the number of pieces")?;
    cursor.present("the places of pieces", u64::from(count) * 12)?;
    let mut places = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let at = cursor.u64("the place of a piece")?;
        places.push((at, cursor.u32("the length of a piece")? as usize));
    }
    let mut pieces = Vec::with_capacity(places.len());
    let mut end = 0u64;
    for (at, bytes) in places {
        let piece = cursor.take("a piece", bytes)?;
        let ends = at
            .checked_add(bytes as u64)
            .filter(|ends| at >= end && *ends <= len);
        let what = "the place of a piece";
        end = ends.ok_or(StateError::Value {
            what,
            found: at as i64,
        })?;
        pieces.push((at as usize, piece));
    }
    if cursor.left() > 0 || len > isize::MAX as u64 {
        let what = "the length of the description";
        let found = description.len() as i64;
        return Err(StateError::Value { what, found });
    }
    let state = read_from(&pieces, len as usize)?;
    Ok((state, pieces))
}
