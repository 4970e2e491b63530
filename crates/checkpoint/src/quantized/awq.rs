//! AWQ's layout: codes of 4 bits in lines of eight outputs a word, a scale and a zero for each group of inputs and
//! each output.
//!
//! As AutoAWQ's version `gemm` writes it.

use safetensors::Dtype;

use super::bag::{Bag, expect, unfit};
use super::codes::{self, Packing};
use super::scales::{Groups, Made, Scales, Zeros, is_number};
use super::tensor::Quantized;
use crate::Error;

/// The matrix whose codes have this name.
pub(super) fn take(name: &str, bag: &mut Bag<'_>) -> Result<Option<Quantized>, Error> {
    let Some(stem) = name.strip_suffix(".qweight") else {
        return Ok(None);
    };
    let weight = format!("{stem}.weight");
    let codes = bag.part(&weight, name)?;
    let zeros = bag.part(&weight, &format!("{stem}.qzeros"))?;
    let scales = bag.part(&weight, &format!("{stem}.scales"))?;
    let (&[columns, words], &[groups, rows]) = (&codes.shape[..], &scales.shape[..]) else {
        return Err(unfit(&weight, &codes));
    };
    expect(&weight, &codes, Dtype::I32, &[columns, rows.div_ceil(8)])?;
    expect(&weight, &zeros, Dtype::I32, &[groups, rows.div_ceil(8)])?;
    if rows % 8 != 0 || !is_number(scales.dtype) {
        return Err(unfit(&weight, &scales));
    }
    Ok(Some(Quantized {
        name: weight,
        shape: vec![rows, columns],
        codes,
        packing: Packing::Across,
        levels: Box::new(codes::unsigned(0)),
        groups: Groups::Columns(columns.div_ceil(groups)),
        scales: Some(Scales {
            stored: scales,
            rows_each: 1,
            strides: [1, rows],
            made: Made::Plain,
        }),
        zeros: Some(Zeros::Across {
            stored: zeros,
            words,
        }),
    }))
}
