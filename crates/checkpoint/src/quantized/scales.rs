//! What a group of codes is multiplied by, and what is subtracted from them before.

use std::sync::LazyLock;

use dwindle_mapped::Mapping;
use half::{bf16, f16};
use safetensors::Dtype;

use super::codes::{self, Levels};
use crate::raw::Raw;

/// Which group an element belongs to.
#[derive(Debug)]
pub(super) enum Groups {
    /// So many columns of a row each.
    Columns(usize),
    /// The group of each column.
    Listed(Vec<u32>),
    /// So many elements of the whole matrix each, row after row.
    Elements(usize),
}

impl Groups {
    /// The groups of a row, counted over the matrix with `Elements`, and over the row with the others.
    pub(super) fn of_row(&self, row: usize, columns: usize) -> std::ops::Range<usize> {
        match self {
            Groups::Columns(each) => 0..columns.div_ceil(*each),
            Groups::Listed(list) => 0..list.iter().max().map_or(0, |last| *last as usize + 1),
            Groups::Elements(each) => {
                row * columns / each..((row + 1) * columns).div_ceil(*each).max(1)
            }
        }
    }

    /// The place of a column's group in [`Groups::of_row`].
    pub(super) fn place(&self, row: usize, column: usize, columns: usize) -> usize {
        match self {
            Groups::Columns(each) => column / each,
            Groups::Listed(list) => list[column] as usize,
            Groups::Elements(each) => (row * columns + column) / each - row * columns / each,
        }
    }
}

/// The scales of a matrix.
#[derive(Debug)]
pub(super) struct Scales {
    pub(super) stored: Raw,
    /// Rows that share a line of scales.
    pub(super) rows_each: usize,
    /// Elements of `stored` from one line to the next, and from one group to the next.
    pub(super) strides: [usize; 2],
    pub(super) made: Made,
}

/// What a stored scale becomes.
#[derive(Debug)]
pub(super) enum Made {
    /// It is used as it is.
    Plain,
    /// Times a scale of the whole matrix.
    Times(f32),
    /// Divided by a scale of the whole matrix.
    Over(f32),
    /// A code of a table, times the scale of its own group, and an offset (bitsandbytes).
    Nested(Box<Nested>),
}

/// Scales that are codes themselves.
#[derive(Debug)]
pub(super) struct Nested {
    pub(super) table: Levels,
    pub(super) scales: Vec<f32>,
    pub(super) each: usize,
    pub(super) offset: f32,
}

impl Scales {
    /// The scale of a group of a row.
    pub(super) fn get(&self, shards: &[Mapping], row: usize, group: usize) -> f32 {
        let index = row / self.rows_each * self.strides[0] + group * self.strides[1];
        let bytes = self.stored.bytes(shards);
        match &self.made {
            Made::Plain => number(bytes, self.stored.dtype, index),
            Made::Times(all) => number(bytes, self.stored.dtype, index) * all,
            Made::Over(all) => number(bytes, self.stored.dtype, index) / all,
            Made::Nested(nested) => {
                let level = nested.table[usize::from(bytes[index])];
                level * nested.scales[index / nested.each] + nested.offset
            }
        }
    }

    /// Whether every scale is a half float.
    pub(super) fn are_halves(&self, shards: &[Mapping]) -> bool {
        let (bytes, dtype) = (self.stored.bytes(shards), self.stored.dtype);
        let is_half = |i| {
            let scale = number(bytes, dtype, i);
            f16::from_f32(scale).to_f32() == scale
        };
        matches!(self.made, Made::Plain)
            && (dtype == Dtype::F16 || (0..self.stored.elements()).all(is_half))
    }
}

static E4M3: LazyLock<Levels> = LazyLock::new(|| codes::float8(4));

/// Whether [`number`] reads a type.
pub(super) fn is_number(dtype: Dtype) -> bool {
    use Dtype::{BF16, F8_E4M3, F8_E8M0, F16, F32};
    matches!(dtype, F32 | F16 | BF16 | F8_E4M3 | F8_E8M0)
}

/// An element of a tensor as a float.
pub(crate) fn number(bytes: &[u8], dtype: Dtype, index: usize) -> f32 {
    let two = || [bytes[2 * index], bytes[2 * index + 1]];
    match dtype {
        Dtype::F16 => f16::from_le_bytes(two()).to_f32(),
        Dtype::BF16 => bf16::from_le_bytes(two()).to_f32(),
        Dtype::F8_E4M3 => E4M3[usize::from(bytes[index])],
        Dtype::F8_E8M0 => power(bytes[index]),
        _ => f32::from_bits(codes::word(bytes, index)),
    }
}

/// E8M0: a power of two.
pub(super) fn power(code: u8) -> f32 {
    match code {
        0 => 2f32.powi(-127),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// What stands for zero in each group of each row.
#[derive(Debug)]
pub(super) enum Zeros {
    /// Streams of codes along the rows, one for each group: the first word of a group's, and from one word to the
    /// next. GPTQ's first format stores one less.
    Streams {
        stored: Raw,
        bits: usize,
        plus: u8,
        lane_each: usize,
        stride: usize,
    },
    /// AWQ's words along the rows, a line for each group.
    Across { stored: Raw, words: usize },
    /// Signed bytes, a line for each row.
    Bytes { stored: Raw, groups: usize },
}

impl Zeros {
    /// That of a group of a row.
    pub(super) fn get(&self, shards: &[Mapping], row: usize, group: usize) -> f32 {
        match self {
            Zeros::Streams {
                stored,
                bits,
                plus,
                lane_each,
                stride,
            } => {
                let (bytes, lane) = (stored.bytes(shards), group * lane_each);
                let code = codes::streamed(bytes, *stride, lane, row, *bits);
                let mask = ((1u32 << bits) - 1) as u8;
                f32::from(code.wrapping_add(*plus) & mask)
            }
            Zeros::Across { stored, words } => {
                f32::from(codes::across(stored.bytes(shards), *words, group, row))
            }
            Zeros::Bytes { stored, groups } => {
                f32::from(stored.bytes(shards)[row * groups + group] as i8)
            }
        }
    }
}
