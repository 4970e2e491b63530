//! Cells of a state between the file's order and rows of floats.

use std::ops::Range;

use dwindle_formats::gguf::TensorType;
use dwindle_formats::state::{Part, Rows};
use dwindle_ggml::{dequantize, quantized};

use crate::error::KvError;
use crate::turns::hadamard;

/// Keys and values of some cells, layer by layer: rows of cells, as they were before a Hadamard matrix.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cells {
    /// The position of each cell.
    pub positions: Vec<i32>,
    /// How many cells come before the first of these.
    pub before: usize,
    /// How many cells come after the last of these.
    pub after: usize,
    /// Keys, after RoPE.
    pub keys: Vec<Vec<f32>>,
    /// Values.
    pub values: Vec<Vec<f32>>,
}

/// The bytes of cells, one cell after the other.
pub(crate) fn bytes_of(
    bytes: &[u8],
    part: &Part,
    is_transposed: bool,
    count: usize,
    cells: &Range<usize>,
) -> Vec<u8> {
    let row = part.row_bytes();
    if !is_transposed {
        return bytes[part.at + cells.start * row..part.at + cells.end * row].to_vec();
    }
    let size = part.ty.block_bytes() as usize;
    let mut out = vec![0; row * cells.len()];
    for element in 0..part.width as usize {
        let column = part.at + (element * count + cells.start) * size;
        let column = &bytes[column..column + cells.len() * size];
        for (cell, value) in column.chunks_exact(size).enumerate() {
            let at = cell * row + element * size;
            out[at..at + size].copy_from_slice(value);
        }
    }
    out
}

/// Writes bytes of cells, one cell after the other, to where they belong.
pub(crate) fn put_bytes(
    rows: &[u8],
    part: &Part,
    is_transposed: bool,
    count: usize,
    first: usize,
    put: &mut dyn FnMut(usize, &[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let row = part.row_bytes();
    if !is_transposed {
        return put(part.at + first * row, rows);
    }
    let size = part.ty.block_bytes() as usize;
    let cells = rows.len() / row;
    let mut column = Vec::with_capacity(cells * size);
    for element in 0..part.width as usize {
        column.clear();
        for cell in rows.chunks_exact(row) {
            column.extend_from_slice(&cell[element * size..(element + 1) * size]);
        }
        put(part.at + (element * count + first) * size, &column)?;
    }
    Ok(())
}

/// Rows as floats, with the Hadamard matrix undone.
pub(crate) fn floats(ty: TensorType, bytes: &[u8], turn: u32) -> Result<Vec<f32>, KvError> {
    let blocks = bytes.len() as u64 / ty.block_bytes();
    let mut out = vec![0.0; (blocks * ty.block_len()) as usize];
    dequantize(ty, bytes, &mut out)?;
    hadamard(&mut out, turn as usize);
    Ok(out)
}

/// Rows in a type, after a Hadamard matrix.
pub(crate) fn bytes_from(
    ty: TensorType,
    rows: &[f32],
    width: usize,
    turn: u32,
) -> Result<Vec<u8>, KvError> {
    if turn == 0 {
        return Ok(quantized(ty, rows, width, None)?);
    }
    let mut rows = rows.to_vec();
    hadamard(&mut rows, turn as usize);
    Ok(quantized(ty, &rows, width, None)?)
}

impl Cells {
    /// Reads cells of a stream with so many cells, from the state's bytes.
    ///
    /// # Errors
    /// A type that can't be read.
    pub fn read(
        bytes: &[u8],
        rows: &Rows,
        positions: &[i32],
        cells: Range<usize>,
    ) -> Result<Cells, KvError> {
        let count = positions.len();
        let read = |parts: &[Part], is_transposed: bool, turn: u32| {
            let floats = |part: &Part| {
                let bytes = bytes_of(bytes, part, is_transposed, count, &cells);
                floats(part.ty, &bytes, turn)
            };
            parts.iter().map(floats).collect::<Result<Vec<_>, _>>()
        };
        Ok(Cells {
            positions: positions[cells.clone()].to_vec(),
            before: cells.start,
            after: count - cells.end,
            keys: read(&rows.keys, false, rows.key_turn)?,
            values: read(&rows.values, rows.is_transposed, rows.value_turn)?,
        })
    }
}

impl Cells {
    /// Some of these cells.
    pub fn piece(&self, cells: Range<usize>) -> Cells {
        let count = self.positions.len();
        let cut = |layers: &[Vec<f32>]| {
            let of = |rows: &Vec<f32>| {
                let width = rows.len() / count.max(1);
                rows[cells.start * width..cells.end * width].to_vec()
            };
            layers.iter().map(of).collect()
        };
        Cells {
            positions: self.positions[cells.clone()].to_vec(),
            before: self.before + cells.start,
            after: self.after + count - cells.end,
            keys: cut(&self.keys),
            values: cut(&self.values),
        }
    }

    /// Puts the first cells of others in the place of the own.
    pub fn take_first(&mut self, others: &Cells, count: usize) {
        let all = self.positions.len();
        let pairs = self.keys.iter_mut().zip(&others.keys);
        for (own, other) in pairs.chain(self.values.iter_mut().zip(&others.values)) {
            let end = own.len() / all.max(1) * count.min(all);
            own[..end].copy_from_slice(&other[..end]);
        }
    }

    /// Pieces that follow one another, as one.
    pub(crate) fn joined(pieces: Vec<Cells>) -> Cells {
        let mut all = Cells {
            before: pieces.first().map_or(0, |piece| piece.before),
            ..Cells::default()
        };
        for piece in pieces {
            all.positions.extend(piece.positions);
            all.after = piece.after;
            for (to, from) in [(&mut all.keys, piece.keys), (&mut all.values, piece.values)] {
                to.resize_with(from.len(), Vec::new);
                to.iter_mut()
                    .zip(from)
                    .for_each(|(to, from)| to.extend(from));
            }
        }
        all
    }

    /// Writes all cells of a stream over those in the state's bytes.
    ///
    /// # Errors
    /// A type that can't be written.
    pub fn write(&self, bytes: &mut [u8], rows: &Rows) -> Result<(), KvError> {
        let count = self.positions.len();
        let mut put = |at: usize, row: &[u8]| {
            bytes[at..at + row.len()].copy_from_slice(row);
            Ok(())
        };
        for (layers, parts, is_transposed, turn) in [
            (&self.keys, &rows.keys, false, rows.key_turn),
            (
                &self.values,
                &rows.values,
                rows.is_transposed,
                rows.value_turn,
            ),
        ] {
            for (layer, part) in layers.iter().zip(parts) {
                let encoded = bytes_from(part.ty, layer, part.width as usize, turn)?;
                put_bytes(&encoded, part, is_transposed, count, 0, &mut put)?;
            }
        }
        Ok(())
    }
}
