//! The formats of compressed-tensors, which llm-compressor writes for vLLM.

use safetensors::Dtype;

use super::bag::{Bag, bad, expect, unfit};
use super::codes::{self, Packing};
use super::float4;
use super::float8;
use super::scales::{Groups, Made, Zeros};
use super::tensor::{Quantized, centred, scalar};
use crate::Error;
use crate::raw::Raw;

/// What the configuration says.
#[derive(Debug, Clone)]
pub(super) struct Compressed {
    /// The widths of codes that it names.
    pub(super) bits: Vec<usize>,
    /// The size of blocks, rows and columns.
    pub(super) block: Option<[usize; 2]>,
}

impl Compressed {
    /// The matrix one of whose parts has this name.
    pub(super) fn take(&self, name: &str, bag: &mut Bag<'_>) -> Result<Option<Quantized>, Error> {
        if let Some(weight) = name.strip_suffix("_packed") {
            let codes = bag.part(weight, name)?;
            return match codes.dtype {
                Dtype::U8 => small_floats(weight, codes, bag).map(Some),
                _ => self.packed(weight, codes, bag).map(Some),
            };
        }
        match bag.get(name).map(|raw| raw.dtype) {
            Some(Dtype::I8) if bag.get(&format!("{name}_scale")).is_some() => {
                self.bytes(name, bag).map(Some)
            }
            _ => float8::take(name, bag, self.block),
        }
    }

    /// `pack-quantized`: streams of codes along the rows.
    fn packed(&self, weight: &str, codes: Raw, bag: &mut Bag<'_>) -> Result<Quantized, Error> {
        let shape = bag.part(weight, &format!("{weight}_shape"))?;
        expect(weight, &shape, Dtype::I64, &[2])?;
        let shape = integers(&shape, bag);
        let [rows, columns] = [shape[0], shape[1]];
        let scales = bag.part(weight, &format!("{weight}_scale"))?;
        let widths = self.bits.iter().copied();
        let bits = widths
            .filter(|bits| (1..=8).contains(bits) && columns < usize::MAX / 8)
            // Older files begin each word anew, which is the same where words are filled.
            .filter(|bits| {
                32 % bits == 0 || codes::words(*bits, columns) != columns.div_ceil(32 / bits)
            })
            .find(|bits| codes.shape == [rows, codes::words(*bits, columns)])
            .ok_or_else(|| unfit(weight, &codes))?;
        expect(weight, &codes, Dtype::I32, &codes.shape)?;
        let (mut groups, scales) = float8::by_scales(weight, &[rows, columns], scales, self.block)?;
        let across = match groups {
            Groups::Columns(each) => columns.div_ceil(each),
            _ => 1,
        };
        if let Some(list) = bag.take(&format!("{weight}_g_idx")) {
            groups = listed(weight, &list, columns, across, bag)?;
        }
        let zeros = match bag.take(&format!("{weight}_zero_point")) {
            None => None,
            Some(zeros) => Some(packed_zeros(weight, zeros, [rows, across], bits)?),
        };
        let levels = match zeros {
            Some(Zeros::Streams { .. }) => Box::new(codes::unsigned(0)),
            _ => centred(bits),
        };
        Ok(Quantized {
            name: weight.to_string(),
            shape: vec![rows, columns],
            codes,
            packing: Packing::Along { bits },
            levels,
            groups,
            scales: Some(scales),
            zeros,
        })
    }

    /// `int-quantized`: signed bytes.
    fn bytes(&self, name: &str, bag: &mut Bag<'_>) -> Result<Quantized, Error> {
        let codes = bag.part(name, name)?;
        let scales = bag.part(name, &format!("{name}_scale"))?;
        let (groups, scales) = float8::by_scales(name, &codes.shape, scales, self.block)?;
        let across = match groups {
            Groups::Columns(each) => codes.shape[1].div_ceil(each),
            _ => 1,
        };
        let zeros = match bag.take(&format!("{name}_zero_point")) {
            None => None,
            Some(zeros) => {
                expect(name, &zeros, Dtype::I8, &[codes.shape[0], across])?;
                Some(Zeros::Bytes {
                    stored: zeros,
                    groups: across,
                })
            }
        };
        Ok(Quantized {
            name: name.to_string(),
            shape: codes.shape.clone(),
            codes,
            packing: Packing::Bytes,
            levels: Box::new(codes::signed()),
            groups,
            scales: Some(scales),
            zeros,
        })
    }
}

/// `nvfp4-pack-quantized` and `mxfp4-pack-quantized`.
fn small_floats(weight: &str, codes: Raw, bag: &mut Bag<'_>) -> Result<Quantized, Error> {
    let scales = bag.part(weight, &format!("{weight}_scale"))?;
    let made = match bag.take(&format!("{weight}_global_scale")) {
        None => Made::Plain,
        Some(all) => {
            float4::one(weight, &all)?;
            Made::Over(scalar(&all, bag.shards))
        }
    };
    float4::matrix(weight, codes, scales, made)
}

fn packed_zeros(
    weight: &str,
    stored: Raw,
    [rows, groups]: [usize; 2],
    bits: usize,
) -> Result<Zeros, Error> {
    if stored.dtype == Dtype::I8 {
        expect(weight, &stored, Dtype::I8, &[rows, groups])?;
        return Ok(Zeros::Bytes { stored, groups });
    }
    let words = [codes::words(bits, rows), groups];
    expect(weight, &stored, Dtype::I32, &words)?;
    Ok(Zeros::Streams {
        stored,
        bits,
        plus: 0,
        lane_each: 1,
        stride: groups,
    })
}

/// The group of each column, from a list.
fn listed(
    weight: &str,
    list: &Raw,
    columns: usize,
    groups: usize,
    bag: &Bag<'_>,
) -> Result<Groups, Error> {
    let dtype = match list.dtype {
        Dtype::I64 => Dtype::I64,
        _ => Dtype::I32,
    };
    expect(weight, list, dtype, &[columns])?;
    let list = integers(list, bag);
    // A column that no group was given is marked so, where the list was made and not used.
    if list.iter().all(|group| *group == usize::MAX) {
        return Ok(Groups::Columns(columns.div_ceil(groups)));
    }
    if let Some(out) = list.iter().find(|group| **group >= groups) {
        let problem = format!("`{weight}_g_idx` names group {out} of {groups}");
        return Err(bad(weight, problem));
    }
    Ok(Groups::Listed(list.iter().map(|g| *g as u32).collect()))
}

/// The elements of a tensor of integers; what is negative becomes very large.
fn integers(raw: &Raw, bag: &Bag<'_>) -> Vec<usize> {
    let bytes = raw.bytes(bag.shards);
    let size = bytes.len() / raw.elements().max(1);
    let number = |bytes: &[u8]| {
        let negative = bytes.last().is_some_and(|last| last & 128 != 0);
        let fill = if negative { 255 } else { 0 };
        let mut all = [fill; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        i64::from_le_bytes(all)
    };
    let all = bytes.chunks_exact(size.max(1)).map(number);
    all.map(|n| usize::try_from(n).unwrap_or(usize::MAX))
        .collect()
}
