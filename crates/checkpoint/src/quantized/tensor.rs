//! A matrix of codes as rows of a type that ggml has.

use std::ops::Range;

use dwindle_formats::gguf::TensorType;
use dwindle_mapped::Mapping;
use half::f16;
use safetensors::Dtype;

use super::codes::{Levels, Packing, unsigned};
use super::scales::{Groups, Made, Scales, Zeros, number};
use crate::raw::Raw;

/// Elements of a block of Q4_0, Q8_0 and MXFP4.
const BLOCK: usize = 32;

/// A tensor whose elements are codes: (level of the code - zero of its group) * scale of its group,
/// computed in F32.
#[derive(Debug)]
pub(crate) struct Quantized {
    /// Its name in the model.
    pub(super) name: String,
    /// Its dimensions, rows first.
    pub(super) shape: Vec<usize>,
    pub(super) codes: Raw,
    pub(super) packing: Packing,
    pub(super) levels: Box<Levels>,
    pub(super) groups: Groups,
    pub(super) scales: Option<Scales>,
    pub(super) zeros: Option<Zeros>,
}

impl Quantized {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its dimensions in ggml's order, row length first.
    pub(crate) fn shape(&self) -> Vec<u64> {
        self.shape.iter().rev().map(|n| *n as u64).collect()
    }

    fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn rows(&self) -> usize {
        let elements: usize = self.shape.iter().product();
        elements / self.columns().max(1)
    }

    /// The type that holds its values without loss: one of ggml's with the same codes and scales, or F32.
    pub(crate) fn exact(&self, shards: &[Mapping]) -> TensorType {
        let Some(scales) = &self.scales else {
            return TensorType::F32;
        };
        let columns = self.columns();
        let blocks = columns.is_multiple_of(BLOCK)
            && match self.groups {
                Groups::Columns(each) => each.is_multiple_of(BLOCK),
                _ => false,
            };
        let is_microscaled = scales.stored.dtype == Dtype::F8_E8M0
            && self.packing == Packing::LowFirst
            && matches!(scales.made, Made::Plain);
        if blocks && is_microscaled && matches!(self.groups, Groups::Columns(BLOCK)) {
            return TensorType::MXFP4;
        }
        let zero = self.zero(shards);
        let holds = |ty| match zero {
            Some(_) if blocks && scales.are_halves(shards) => ty,
            _ => TensorType::F32,
        };
        match (self.packing, zero) {
            (Packing::Along { bits: 4 } | Packing::Down { bits: 4 } | Packing::Across, Some(8)) => {
                holds(TensorType::Q4_0)
            }
            (Packing::Along { bits: 8 } | Packing::Down { bits: 8 }, Some(128)) => {
                holds(TensorType::Q8_0)
            }
            (Packing::Bytes, Some(0)) if self.levels[255] == -1.0 => holds(TensorType::Q8_0),
            _ => TensorType::F32,
        }
    }

    /// The code that stands for zero in every group, if it is one: codes of two's complement have 0.
    fn zero(&self, shards: &[Mapping]) -> Option<u8> {
        let of_levels = self.levels.iter().position(|level| *level == 0.0)? as u8;
        let Some(zeros) = &self.zeros else {
            return Some(of_levels);
        };
        let groups = self.groups.of_row(0, self.columns());
        let first = zeros.get(shards, 0, 0);
        let same = (0..self.rows())
            .all(|row| (groups.clone()).all(|group| zeros.get(shards, row, group) == first));
        let code = f32::from(of_levels) + first;
        (same && (0.0..256.0).contains(&code)).then_some(code as u8)
    }

    /// A span of its bytes in a type that [`Quantized::exact`] gave.
    pub(crate) fn read(&self, shards: &[Mapping], ty: TensorType, span: Range<usize>) -> Vec<u8> {
        let columns = self.columns();
        let row_bytes = (columns as u64 / ty.block_len() * ty.block_bytes()) as usize;
        if span.is_empty() || row_bytes == 0 {
            return Vec::new();
        }
        let rows = span.start / row_bytes..span.end.div_ceil(row_bytes);
        let mut out = Vec::with_capacity(rows.len() * row_bytes);
        let mut codes = vec![0; columns];
        for row in rows.clone() {
            let bytes = self.codes.bytes(shards);
            self.packing.row(bytes, self.rows(), row, &mut codes);
            match ty {
                TensorType::F32 => self.floats(shards, row, &codes, &mut out),
                _ => self.blocks(shards, ty, row, &codes, &mut out),
            }
        }
        let start = span.start - rows.start * row_bytes;
        out.drain(..start);
        out.truncate(span.len());
        out
    }

    fn floats(&self, shards: &[Mapping], row: usize, codes: &[u8], out: &mut Vec<u8>) {
        let Some(scales) = &self.scales else {
            let levels = codes.iter().map(|code| self.levels[usize::from(*code)]);
            out.extend(levels.flat_map(f32::to_le_bytes));
            return;
        };
        let groups: Vec<(f32, f32)> = self
            .groups
            .of_row(row, codes.len())
            .map(|group| {
                let zero = self.zeros.as_ref().map(|z| z.get(shards, row, group));
                (zero.unwrap_or(0.0), scales.get(shards, row, group))
            })
            .collect();
        for (column, code) in codes.iter().enumerate() {
            let (zero, scale) = groups[self.groups.place(row, column, codes.len())];
            let value = (self.levels[usize::from(*code)] - zero) * scale;
            out.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// The same codes and scales in blocks of ggml's.
    fn blocks(
        &self,
        shards: &[Mapping],
        ty: TensorType,
        row: usize,
        codes: &[u8],
        out: &mut Vec<u8>,
    ) {
        let Some(scales) = &self.scales else {
            return;
        };
        let signs = if self.levels[255] == -1.0 { 0 } else { 128 };
        for (index, block) in codes.as_chunks::<BLOCK>().0.iter().enumerate() {
            let group = self.groups.place(row, index * BLOCK, codes.len());
            let half = || f16::from_f32(scales.get(shards, row, group)).to_le_bytes();
            match ty {
                TensorType::MXFP4 => {
                    let at = row * scales.strides[0] + group * scales.strides[1];
                    out.push(scales.stored.bytes(shards)[at]);
                }
                _ => out.extend_from_slice(&half()),
            }
            if ty == TensorType::Q8_0 {
                out.extend(block.iter().map(|code| code.wrapping_sub(signs)));
            } else {
                out.extend((0..BLOCK / 2).map(|i| block[i] | block[i + BLOCK / 2] << 4));
            }
        }
    }

    /// Tells the system that its bytes will not be needed again soon.
    pub(crate) fn release(&self, shards: &[Mapping]) {
        shards[self.codes.shard].release(self.codes.range.clone());
    }
}

/// A tensor of one element.
pub(super) fn scalar(raw: &Raw, shards: &[Mapping]) -> f32 {
    number(raw.bytes(shards), raw.dtype, 0)
}

/// The levels of codes of some bits in which the middle stands for zero.
pub(super) fn centred(bits: usize) -> Box<Levels> {
    Box::new(unsigned(1 << (bits - 1)))
}
