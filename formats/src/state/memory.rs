//! Reads the memory of a state. Its kind is not written in it: what fits to the last byte is right.

use super::cursor::Cursor;
use super::{Attention, Part, Rows, Section, StateError, Stream};
use crate::gguf::TensorType;

/// More layers than any model has.
const MAX_LAYERS: u32 = 1 << 12;
/// Wider rows than any model has.
const MAX_WIDTH: u64 = 1 << 22;
/// llama.cpp's own limit of sequences.
const MAX_STREAMS: u32 = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Attention,
    Recurrent,
}
use Kind::{Attention as A, Recurrent as R};

/// What a model's memory may consist of.
const KINDS: [&[Kind]; 5] = [&[A], &[A, A], &[A, R], &[A, A, R], &[R]];
const NAMES: &str =
    "attention, attention with a sliding window, recurrent layers, and these together";

/// How cells and layers may be written.
#[derive(Debug, Clone, Copy)]
struct Style {
    says_turns: bool,
    has_coordinates: bool,
    has_values: bool,
}

/// The sections from here to the end.
pub(super) fn sections(from: Cursor<'_, '_>, says_turns: bool) -> Result<Vec<Section>, StateError> {
    let mut first = None;
    for (has_coordinates, has_values) in
        [(false, true), (false, false), (true, true), (true, false)]
    {
        let style = Style {
            says_turns,
            has_coordinates,
            has_values,
        };
        for kinds in KINDS {
            match fit(from, kinds, style) {
                Ok(sections) => return Ok(sections),
                Err(error) => first = first.or(Some(error)),
            }
        }
    }
    // What plain attention lacks says more than what the others do.
    Err(match first {
        Some(error @ (StateError::Short { .. } | StateError::Value { .. })) => error,
        _ => StateError::Kind(NAMES),
    })
}

fn fit(
    mut cursor: Cursor<'_, '_>,
    kinds: &[Kind],
    style: Style,
) -> Result<Vec<Section>, StateError> {
    let mut sections = Vec::with_capacity(kinds.len());
    for kind in kinds {
        sections.push(match kind {
            A => Section::Attention(attention(&mut cursor, style)?),
            R => recurrent(&mut cursor)?,
        });
    }
    // Layers of one model have read the same text.
    let has_cells = |section: &Section| match section {
        Section::Attention(a) => Some(a.streams.iter().any(|s| s.rows.is_some())),
        Section::Recurrent { .. } => None,
    };
    let mut all = sections.iter().filter_map(has_cells);
    let first = all.next();
    match cursor.left() == 0 && all.all(|has| Some(has) == first) {
        true => Ok(sections),
        false => Err(StateError::Kind(NAMES)),
    }
}

fn attention(cursor: &mut Cursor<'_, '_>, style: Style) -> Result<Attention, StateError> {
    let count = cursor.count("the number of streams", MAX_STREAMS)?;
    if count == 0 {
        return Err(StateError::Value {
            what: "the number of streams",
            found: 0,
        });
    }
    let streams = (0..count).map(|_| stream(cursor, style));
    Ok(Attention {
        has_coordinates: style.has_coordinates,
        streams: streams.collect::<Result<_, _>>()?,
    })
}

fn stream(cursor: &mut Cursor<'_, '_>, style: Style) -> Result<Stream, StateError> {
    let (positions, cells) = cells(cursor, style.has_coordinates)?;
    if positions.is_empty() {
        return Ok(Stream::default());
    }
    let count = positions.len();
    let is_transposed = cursor.flag("the flag of transposed values")?;
    let layers = cursor.count("the number of layers", MAX_LAYERS)?;
    let (key_turn, value_turn) = match style.says_turns {
        true => (turn(cursor)?, turn(cursor)?),
        false => (0, 0),
    };
    let keys = (0..layers).map(|_| rows(cursor, count));
    let keys = keys.collect::<Result<_, _>>()?;
    let values = (0..if style.has_values { layers } else { 0 }).map(|_| match is_transposed {
        true => columns(cursor, count),
        false => rows(cursor, count),
    });
    let values = values.collect::<Result<_, _>>()?;
    Ok(Stream {
        positions,
        cells: cells.to_vec(),
        rows: Some(Rows {
            is_transposed,
            key_turn,
            value_turn,
            keys,
            values,
        }),
    })
}

/// Positions, and all that is said of the cells.
fn cells<'a>(
    cursor: &mut Cursor<'_, 'a>,
    has_coordinates: bool,
) -> Result<(Vec<i32>, &'a [u8]), StateError> {
    let count = cursor.u32("the number of cells")? as usize;
    let least = if has_coordinates { 20 } else { 8 };
    cursor.present("the cells", count as u64 * least)?;
    let begin = *cursor;
    let mut positions = Vec::with_capacity(count);
    for _ in 0..count {
        positions.push(cursor.i32("a cell's position")?);
        let sequences = cursor.count("the number of a cell's sequences", MAX_STREAMS)?;
        cursor.skip("a cell", u64::from(sequences) * 4 + (least - 8))?;
    }
    let len = cursor.at - begin.at;
    Ok((positions, { begin }.take("the cells", len)?))
}

/// Sizes of Hadamard matrices.
fn turn(cursor: &mut Cursor<'_, '_>) -> Result<u32, StateError> {
    let what = "the size of a rotation";
    match cursor.u32(what)? {
        0 => Ok(0),
        size if size.is_power_of_two() && size <= 1 << 12 => Ok(size),
        size => Err(StateError::Value {
            what,
            found: size.into(),
        }),
    }
}

fn ty(cursor: &mut Cursor<'_, '_>) -> Result<TensorType, StateError> {
    let what = "a type";
    let id = cursor.u32(what)?;
    TensorType::from_id(id).ok_or(StateError::Value {
        what,
        found: id.into(),
    })
}

fn rows(cursor: &mut Cursor<'_, '_>, cells: usize) -> Result<Part, StateError> {
    let ty = ty(cursor)?;
    let row = cursor.u64("the bytes of a row")?;
    let width = width(ty, row)?;
    let at = cursor.at;
    cursor.skip("the rows of a layer", row.saturating_mul(cells as u64))?;
    Ok(Part { ty, width, at })
}

/// Elements of a row of so many bytes.
fn width(ty: TensorType, row: u64) -> Result<u32, StateError> {
    let width = (row / ty.block_bytes()).saturating_mul(ty.block_len());
    match row {
        1.. if row.is_multiple_of(ty.block_bytes()) && width <= MAX_WIDTH => Ok(width as u32),
        _ => Err(StateError::Value {
            what: "the bytes of a row",
            found: row as i64,
        }),
    }
}

fn columns(cursor: &mut Cursor<'_, '_>, cells: usize) -> Result<Part, StateError> {
    let ty = ty(cursor)?;
    let what = "the bytes of a value";
    let element = cursor.u32(what)?;
    if ty.is_quantized() || u64::from(element) != ty.block_bytes() {
        let found = element.into();
        return Err(StateError::Value { what, found });
    }
    let width = cursor.count("the width of values", MAX_WIDTH as u32)?;
    if width == 0 {
        return Err(StateError::Value {
            what: "the width of values",
            found: 0,
        });
    }
    let at = cursor.at;
    let bytes = u64::from(width) * u64::from(element);
    cursor.skip("the values of a layer", bytes.saturating_mul(cells as u64))?;
    Ok(Part { ty, width, at })
}

/// A recurrent memory goes to the end. Its rows are those of layers that it does not name, so that only their sum can be
/// checked.
fn recurrent(cursor: &mut Cursor<'_, '_>) -> Result<Section, StateError> {
    let begin = cursor.at;
    let (positions, _) = cells(cursor, false)?;
    let what = "the flag of transposed states";
    if cursor.flag(what)? {
        return Err(StateError::Value { what, found: 1 });
    }
    let layers = cursor.count("the number of recurrent layers", MAX_LAYERS)?;
    let mut records = 0;
    while cursor.left() > 0 {
        records += 1;
        if records > 2 * layers {
            return Err(StateError::Kind(NAMES));
        }
        ty(cursor)?;
        // Some layers have nothing but the first of both.
        let row = cursor.u64("the bytes of a state")?;
        cursor.skip("a state", row.saturating_mul(positions.len() as u64))?;
    }
    let range = begin..cursor.at;
    Ok(Section::Recurrent { range, positions })
}
