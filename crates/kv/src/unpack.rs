//! Unpacks a state, into the form and the types that are wanted.

use std::ops::Range;

use dwindle_formats::gguf::TensorType;
use dwindle_formats::packed::{Packed, Record};
use dwindle_formats::state::{Attention, Part, Piece, Rows, Section, State, Stream, described};
use rayon::prelude::*;

use crate::cells::{Cells, bytes_from, floats, put_bytes};
use crate::chunked_svd;
use crate::codebook::Codebook;
use crate::error::KvError;
use crate::lossless;
use crate::pack::{RAW, check_step, elements, exact, is_coded};
use crate::parts::widths;
use crate::rotated;
use crate::settings::{Method, Settings, type_of};
use crate::target::Target;
use crate::transform::Transform;

/// Takes bytes, and where in the state they belong.
pub type Put<'a> = dyn FnMut(usize, &[u8]) -> std::io::Result<()> + 'a;

/// A packed state, and what it takes to unpack it.
pub struct Unpacker<'a> {
    packed: &'a Packed<'a>,
    settings: Settings,
    codebook: Option<&'a Codebook>,
}

/// Rows of a layer as a record gives them.
enum Found {
    Floats(Vec<f32>),
    /// Bytes as they were in the state that was packed.
    Bytes(Vec<u8>),
}

impl<'a> Unpacker<'a> {
    /// Holds a codebook against the packed state.
    ///
    /// # Errors
    /// The state needs a codebook, or another one.
    pub fn new(
        packed: &'a Packed<'a>,
        codebook: Option<&'a Codebook>,
    ) -> Result<Unpacker<'a>, KvError> {
        let settings = Settings::read(packed.settings)?;
        if let Method::Transform {
            codebook: expected,
            step,
        } = &settings.method
        {
            let codebook = codebook.ok_or(KvError::NoCodebook)?;
            let found = codebook.digest();
            if found != *expected {
                let expected = expected.clone();
                return Err(KvError::OtherCodebook { found, expected });
            }
            check_step(*step)?;
            let first = packed.state.sections.first();
            if let Some(Section::Attention(attention)) = first {
                for rows in attention.streams.iter().filter_map(|s| s.rows.as_ref()) {
                    codebook
                        .geometry
                        .check(&widths(&rows.keys), &widths(&rows.values))?;
                }
            }
        }
        check_expansion(packed)?;
        Ok(Unpacker {
            packed,
            settings,
            codebook,
        })
    }

    /// How the state was packed.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Writes the state. Gives its bytes.
    ///
    /// `size` is called once, with them, before anything is put anywhere.
    ///
    /// # Errors
    /// [`KvError`]: the target does not fit, a record is damaged, or writing fails.
    pub fn unpack(
        &self,
        target: &Target,
        size: &mut dyn FnMut(usize) -> std::io::Result<()>,
        put: &mut Put<'_>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<usize, KvError> {
        let (mut source, pieces) = described(&self.packed.description)?;
        if let Some(turns) = self.settings.rotated {
            rotated::turn(&mut source, turns);
        }
        let mut state = target.aim(&source, &self.settings)?;
        let frame = state.lay_out();
        size(frame.len)?;
        for (at, piece) in &frame.pieces {
            put(*at, piece)?;
        }
        for (from, to) in source.sections.iter().zip(&state.sections) {
            if let (Section::Recurrent { range: from, .. }, Section::Recurrent { range: to, .. }) =
                (from, to)
            {
                put(to.start, within(&pieces, from).ok_or(KvError::Nothing)?)?;
            }
        }
        for batch in self.packed.records.chunks(2 * rayon::current_num_threads()) {
            let found: Vec<_> = batch
                .par_iter()
                .map(|record| self.rows(record, &source, &state))
                .collect();
            for (record, found) in batch.iter().zip(found) {
                let stream = stream_of(&state, record, &source)?;
                self.put(record, &found?, stream, put)?;
                progress(record.place.cells as usize);
            }
        }
        Ok(frame.len)
    }

    /// The bytes of a record's rows as they are wanted.
    fn rows(
        &self,
        record: &Record,
        source: &State,
        state: &State,
    ) -> Result<Vec<Vec<u8>>, KvError> {
        let payload = self.packed.payload(record)?;
        let (from, to) = (
            stream_at(source, record)?,
            stream_of(state, record, source)?,
        );
        let (Some(from_rows), Some(to_rows)) = (&from.rows, &to.rows) else {
            return Err(KvError::Nothing);
        };
        let cells = record.place.first as usize..(record.place.first + record.place.cells) as usize;
        let damaged = || KvError::Cells {
            first: cells.start,
            end: cells.end,
        };
        let (how, payload) = payload.split_first().ok_or_else(damaged)?;
        let found = match (*how, is_coded(record.place.section)) {
            (RAW, _) => whole(raw(payload, from_rows, cells.len())),
            (_, true) => self.coded(payload, from, from_rows, &cells)?,
            _ => None,
        };
        let (keys, values) = found.ok_or_else(damaged)?;
        let mut out = Vec::with_capacity(keys.len() + values.len());
        for (found, from, to, turns) in [
            (
                keys,
                &from_rows.keys,
                &to_rows.keys,
                (from_rows.key_turn, to_rows.key_turn),
            ),
            (
                values,
                &from_rows.values,
                &to_rows.values,
                (from_rows.value_turn, to_rows.value_turn),
            ),
        ] {
            for ((found, from), to) in found.into_iter().zip(from).zip(to) {
                out.push(converted(found, from, to, turns)?);
            }
        }
        Ok(out)
    }

    fn coded(
        &self,
        payload: &[u8],
        stream: &Stream,
        rows: &Rows,
        cells: &Range<usize>,
    ) -> Result<Option<Pair>, KvError> {
        let positions = &stream.positions[cells.clone()];
        let around = (cells.start, stream.positions.len() - cells.end);
        let shapes = (widths(&rows.keys), widths(&rows.values));
        let decoded = match (&self.settings.method, self.codebook) {
            (Method::Transform { step, .. }, Some(codebook)) => {
                let transform = Transform {
                    codebook,
                    step: *step,
                };
                let exact = exact(codebook, cells);
                let Some((first, payload)) = (match exact.is_empty() {
                    true => Some((None, payload)),
                    false => raw(payload, rows, exact.len()).map(|(pair, rest)| (Some(pair), rest)),
                }) else {
                    return Ok(None);
                };
                let mut near = transform.decode(payload, positions, around)?;
                if let Some(first) = first {
                    near.take_first(
                        &floats_of(first, rows, &positions[..exact.len()])?,
                        exact.len(),
                    );
                }
                Some(near)
            }
            (Method::ChunkedSvd { .. }, _) => {
                chunked_svd::decode(payload, positions, (&shapes.0, &shapes.1))
            }
            (Method::Quantize { ty, turns }, _) => {
                let ty = type_of(ty)?;
                dequantized(payload, ty, *turns, positions, (&shapes.0, &shapes.1))?
            }
            _ => None,
        };
        Ok(decoded.map(|cells| {
            let found = |rows: Vec<Vec<f32>>| rows.into_iter().map(Found::Floats).collect();
            (found(cells.keys), found(cells.values))
        }))
    }

    fn put(
        &self,
        record: &Record,
        found: &[Vec<u8>],
        stream: &Stream,
        put: &mut Put<'_>,
    ) -> Result<(), KvError> {
        let rows = stream.rows.as_ref().ok_or(KvError::Nothing)?;
        let keys = rows.keys.iter().map(|part| (part, false));
        let values = rows.values.iter().map(|part| (part, rows.is_transposed));
        let (count, first) = (stream.positions.len(), record.place.first as usize);
        for ((part, is_transposed), bytes) in keys.chain(values).zip(found) {
            put_bytes(bytes, part, is_transposed, count, first, put)?;
        }
        Ok(())
    }
}

/// Whether records are long enough for what comes of them, before any memory is taken for it.
fn check_expansion(packed: &Packed<'_>) -> Result<(), KvError> {
    for record in &packed.records {
        let rows = stream_at(&packed.state, record)?
            .rows
            .as_ref()
            .ok_or(KvError::Nothing)?;
        let cells = record.place.cells as usize;
        let parts = || rows.keys.iter().chain(&rows.values);
        let is_raw = packed.first_byte(record) == Some(RAW);
        let needed: usize = match is_raw {
            true => parts().map(|p| p.row_bytes() * cells).sum(),
            false => elements(rows) * cells * 2,
        };
        if needed > record.range.len().saturating_mul(lossless::EXPANSION) {
            let first = record.place.first as usize;
            let end = first + cells;
            return Err(KvError::Cells { first, end });
        }
    }
    Ok(())
}

/// The bytes of a range, if one piece has them all.
fn within<'p>(pieces: &[Piece<'p>], range: &Range<usize>) -> Option<&'p [u8]> {
    pieces.iter().find_map(|(at, bytes)| {
        let begin = range.start.checked_sub(*at)?;
        bytes.get(begin..begin + range.len())
    })
}

/// The section that a record's cells are of.
fn attention_of<'s>(state: &'s State, record: &Record) -> Result<&'s Attention, KvError> {
    match state.sections.get(record.place.section as usize) {
        Some(Section::Attention(attention)) => Ok(attention),
        _ => Err(KvError::Nothing),
    }
}

fn stream_at<'s>(state: &'s State, record: &Record) -> Result<&'s Stream, KvError> {
    let streams = &attention_of(state, record)?.streams;
    let stream = streams.get(record.place.stream as usize);
    stream.ok_or(KvError::Nothing)
}

/// Where the record's cells are in a state whose streams may be arranged otherwise.
fn stream_of<'s>(state: &'s State, record: &Record, source: &State) -> Result<&'s Stream, KvError> {
    let streams = &attention_of(state, record)?.streams;
    let same = streams.get(record.place.stream as usize);
    let wanted = &stream_at(source, record)?.positions;
    let same = same.filter(|s| s.positions.len() == wanted.len());
    let used = || streams.iter().find(|s| !s.positions.is_empty());
    same.or_else(used)
        .or(streams.first())
        .ok_or(KvError::Nothing)
}

/// Rows of keys and of values.
type Pair = (Vec<Found>, Vec<Found>);

/// What was found, if nothing follows it.
fn whole(found: Option<(Pair, &[u8])>) -> Option<Pair> {
    found
        .filter(|(_, rest)| rest.is_empty())
        .map(|(pair, _)| pair)
}

fn floats_of(pair: Pair, rows: &Rows, positions: &[i32]) -> Result<Cells, KvError> {
    let floats = |found: Vec<Found>, parts: &[Part], turn: u32| {
        let of = |(found, part): (Found, &Part)| match found {
            Found::Floats(rows) => Ok(rows),
            Found::Bytes(bytes) => floats(part.ty, &bytes, turn),
        };
        found
            .into_iter()
            .zip(parts)
            .map(of)
            .collect::<Result<Vec<_>, KvError>>()
    };
    Ok(Cells {
        positions: positions.to_vec(),
        keys: floats(pair.0, &rows.keys, rows.key_turn)?,
        values: floats(pair.1, &rows.values, rows.value_turn)?,
        ..Cells::default()
    })
}

/// Rows bit by bit, and what follows them.
fn raw<'b>(payload: &'b [u8], rows: &Rows, cells: usize) -> Option<(Pair, &'b [u8])> {
    let mut rest = payload;
    let mut take = |part: &Part| {
        let (len, more) = rest.split_first_chunk::<4>()?;
        let (packed, more) = more.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        rest = more;
        let len = part.row_bytes() * cells;
        lossless::decode(part.ty, packed, part.width as usize, len).map(Found::Bytes)
    };
    let keys = rows
        .keys
        .iter()
        .map(&mut take)
        .collect::<Option<Vec<_>>>()?;
    let values = rows
        .values
        .iter()
        .map(&mut take)
        .collect::<Option<Vec<_>>>()?;
    Some(((keys, values), rest))
}

fn dequantized(
    payload: &[u8],
    ty: TensorType,
    turns: [u32; 2],
    positions: &[i32],
    (keys, values): (&[usize], &[usize]),
) -> Result<Option<Cells>, KvError> {
    let mut cells = Cells {
        positions: positions.to_vec(),
        ..Cells::default()
    };
    let mut rest = payload;
    for (widths, turn, out) in [
        (keys, turns[0], &mut cells.keys),
        (values, turns[1], &mut cells.values),
    ] {
        for width in widths {
            let bytes = ty.row_bytes(*width as u64) as usize * positions.len();
            let Some((rows, more)) = rest.split_at_checked(bytes) else {
                return Ok(None);
            };
            let is_sound =
                turn == 0 || (turn.is_power_of_two() && width.is_multiple_of(turn as usize));
            if bytes == 0 || !is_sound {
                return Ok(None);
            }
            out.push(floats(ty, rows, turn)?);
            rest = more;
        }
    }
    Ok(rest.is_empty().then_some(cells))
}

fn converted(found: Found, from: &Part, to: &Part, turns: (u32, u32)) -> Result<Vec<u8>, KvError> {
    let rows = match found {
        Found::Bytes(bytes) if from.ty == to.ty && turns.0 == turns.1 => return Ok(bytes),
        Found::Bytes(bytes) => floats(from.ty, &bytes, turns.0)?,
        Found::Floats(rows) => rows,
    };
    bytes_from(to.ty, &rows, to.width as usize, turns.1)
}
