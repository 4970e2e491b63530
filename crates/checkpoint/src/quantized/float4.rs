//! Floats of 4 bits, two in a byte: NVFP4 (16 elements share a scale of E4M3, and all one of F32) and MXFP4 (32 share a
//! power of two).

use safetensors::Dtype;

use super::bag::{Bag, expect, unfit};
use super::codes::{self, Packing};
use super::scales::{Groups, Made, Scales};
use super::tensor::{Quantized, scalar};
use crate::Error;
use crate::raw::Raw;

/// A matrix of codes `[rows, columns / 2]` with scales `[rows, groups]`, and the scale of all.
pub(super) fn matrix(
    name: &str,
    codes: Raw,
    mut scales: Raw,
    made: Made,
) -> Result<Quantized, Error> {
    let (&[rows, bytes], &[lines, groups]) = (&codes.shape[..], &scales.shape[..]) else {
        return Err(unfit(name, &codes));
    };
    let columns = 2 * bytes;
    if codes.dtype != Dtype::U8 || lines != rows {
        return Err(unfit(name, &scales));
    }
    let each = match scales.dtype {
        Dtype::F8_E4M3 => 16,
        Dtype::U8 | Dtype::F8_E8M0 => {
            scales.dtype = Dtype::F8_E8M0;
            32
        }
        _ => return Err(unfit(name, &scales)),
    };
    if columns != groups * each {
        return Err(unfit(name, &scales));
    }
    Ok(Quantized {
        name: name.to_string(),
        shape: vec![rows, columns],
        codes,
        packing: Packing::LowFirst,
        levels: Box::new(codes::float4()),
        groups: Groups::Columns(each),
        scales: Some(Scales {
            stored: scales,
            rows_each: 1,
            strides: [groups, 1],
            made,
        }),
        zeros: None,
    })
}

/// ModelOpt's NVFP4: `weight` of bytes, `weight_scale` of E4M3, and `weight_scale_2`.
pub(super) fn take_modelopt(name: &str, bag: &mut Bag<'_>) -> Result<Option<Quantized>, Error> {
    let all = format!("{name}_scale_2");
    if bag.get(&all).is_none() || bag.get(name).is_none_or(|raw| raw.dtype != Dtype::U8) {
        return Ok(None);
    }
    let all = bag.part(name, &all)?;
    one(name, &all)?;
    let scales = bag.part(name, &format!("{name}_scale"))?;
    let codes = bag.part(name, name)?;
    let made = Made::Times(scalar(&all, bag.shards));
    matrix(name, codes, scales, made).map(Some)
}

/// Holds that a tensor is one float.
pub(super) fn one(of: &str, raw: &Raw) -> Result<(), Error> {
    match raw.shape[..] {
        [] => expect(of, raw, Dtype::F32, &[]),
        _ => expect(of, raw, Dtype::F32, &[1]),
    }
}

/// Stacks of experts as gpt-oss has them, which keep their names, since without codes they lie otherwise: `…_blocks` of `[experts, rows, groups, 16]` bytes and `…_scales` of
/// `[experts, rows, groups]`.
pub(super) fn take_experts(name: &str, bag: &mut Bag<'_>) -> Result<Option<Quantized>, Error> {
    let Some(stem) = name.strip_suffix("_blocks") else {
        return Ok(None);
    };
    let codes = bag.part(stem, name)?;
    let mut scales = bag.part(stem, &format!("{stem}_scales"))?;
    let &[experts, rows, groups, 16] = &codes.shape[..] else {
        return Err(unfit(stem, &codes));
    };
    expect(stem, &codes, Dtype::U8, &[experts, rows, groups, 16])?;
    expect(stem, &scales, Dtype::U8, &[experts, rows, groups])?;
    scales.dtype = Dtype::F8_E8M0;
    Ok(Some(Quantized {
        name: name.to_string(),
        shape: vec![experts, rows, groups * 32],
        codes,
        packing: Packing::LowFirst,
        levels: Box::new(codes::float4()),
        groups: Groups::Columns(32),
        scales: Some(Scales {
            stored: scales,
            rows_each: 1,
            strides: [groups, 1],
            made: Made::Plain,
        }),
        zeros: None,
    }))
}
