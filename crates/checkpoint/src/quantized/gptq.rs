//! GPTQ's layout: codes down the columns of a transposed matrix, a scale and a zero for each group of inputs
//! and each output, and possibly a list that says which group each input is in.
//!
//! As AutoGPTQ and GPTQModel write it.

use safetensors::Dtype;

use super::bag::{Bag, bad, expect, unfit};
use super::codes::{self, Packing};
use super::scales::{Groups, Made, Scales, Zeros, is_number};
use super::tensor::Quantized;
use crate::Error;
use crate::raw::Raw;

/// What the configuration says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gptq {
    pub(super) bits: usize,
    /// What the zeros lack: one in the first format, nothing in the second.
    pub(super) plus: u8,
    /// Inputs of a group.
    pub(super) group: Option<usize>,
}

impl Gptq {
    /// The matrix whose codes have this name.
    pub(super) fn take(self, name: &str, bag: &mut Bag<'_>) -> Result<Option<Quantized>, Error> {
        let Some(stem) = name.strip_suffix(".qweight") else {
            return Ok(None);
        };
        let Gptq { bits, plus, group } = self;
        let weight = format!("{stem}.weight");
        let codes = bag.part(&weight, name)?;
        let zeros = bag.part(&weight, &format!("{stem}.qzeros"))?;
        let scales = bag.part(&weight, &format!("{stem}.scales"))?;
        let list = bag.take(&format!("{stem}.g_idx"));
        let (&[words, rows], &[groups, _]) = (&codes.shape[..], &scales.shape[..]) else {
            return Err(unfit(&weight, &codes));
        };
        let columns = words * 32 / bits;
        expect(&weight, &codes, Dtype::I32, &[words, rows])?;
        let line = codes::words(bits, rows);
        let lines = [groups, line];
        expect(&weight, &zeros, Dtype::I32, &lines)?;
        if scales.shape != [groups, rows] || !is_number(scales.dtype) {
            return Err(unfit(&weight, &scales));
        }
        // Where the configuration's width can't be, they are as wide as one another.
        let each = group.filter(|each| columns.div_ceil(*each) == groups);
        let each = each.unwrap_or(columns.div_ceil(groups));
        let groups = match list {
            None => Groups::Columns(each),
            Some(list) => listed(&weight, &list, (columns, each), groups, bag)?,
        };
        Ok(Some(Quantized {
            name: weight,
            shape: vec![rows, columns],
            codes,
            packing: Packing::Down { bits },
            levels: Box::new(codes::unsigned(0)),
            groups,
            scales: Some(Scales {
                stored: scales,
                rows_each: 1,
                strides: [1, rows],
                made: Made::Plain,
            }),
            zeros: Some(Zeros::Streams {
                stored: zeros,
                bits,
                plus,
                lane_each: line,
                stride: 1,
            }),
        }))
    }
}

/// The group of each column, from a list. Where they are in order, they are so wide each.
fn listed(
    weight: &str,
    list: &Raw,
    (columns, each): (usize, usize),
    groups: usize,
    bag: &Bag<'_>,
) -> Result<Groups, Error> {
    expect(weight, list, Dtype::I32, &[columns])?;
    let bytes = list.bytes(bag.shards);
    let of_columns: Vec<u32> = (0..columns).map(|i| codes::word(bytes, i)).collect();
    if let Some(out) = of_columns.iter().find(|group| **group as usize >= groups) {
        let problem = format!("`{}` names group {out} of {groups}", list.name);
        return Err(bad(weight, problem));
    }
    let in_order = |(i, group): (usize, &u32)| *group as usize == i / each;
    Ok(match of_columns.iter().enumerate().all(in_order) {
        true => Groups::Columns(each),
        false => Groups::Listed(of_columns),
    })
}
