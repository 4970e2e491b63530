//! bitsandbytes: NF4 and FP4 with a table of levels, whose scales may be codes themselves, and LLM.int8().

use safetensors::Dtype;
use serde::Deserialize;

use super::bag::{Bag, bad, expect, unfit};
use super::codes::{self, Levels, Packing};
use super::scales::{Groups, Made, Nested, Scales};
use super::tensor::Quantized;
use crate::Error;
use crate::raw::Raw;

/// What bitsandbytes stores of a matrix of 4 bits, as JSON in a tensor.
#[derive(Deserialize)]
struct State {
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// The matrix of this name, if it is one of codes.
pub(super) fn take(name: &str, bag: &mut Bag<'_>) -> Result<Option<Quantized>, Error> {
    let Some(stem) = name.strip_suffix(".weight") else {
        return Ok(None);
    };
    let scales = format!("{stem}.SCB");
    if bag.get(&scales).is_some() {
        return bytes(name, &scales, bag).map(Some);
    }
    let states = ["nf4", "fp4"].map(|kind| format!("{name}.quant_state.bitsandbytes__{kind}"));
    match states.iter().find(|state| bag.get(state).is_some()) {
        Some(state) => half_bytes(name, state, bag).map(Some),
        None => Ok(None),
    }
}

/// LLM.int8(): signed bytes; a row's scale is what 127 stands for.
fn bytes(name: &str, scales: &str, bag: &mut Bag<'_>) -> Result<Quantized, Error> {
    let codes = bag.part(name, name)?;
    let scales = bag.part(name, scales)?;
    let &[rows, columns] = &codes.shape[..] else {
        return Err(unfit(name, &codes));
    };
    expect(name, &codes, Dtype::I8, &[rows, columns])?;
    expect(name, &scales, Dtype::F32, &[rows])?;
    Ok(Quantized {
        name: name.to_string(),
        shape: codes.shape.clone(),
        codes,
        packing: Packing::Bytes,
        levels: Box::new(codes::signed()),
        groups: Groups::Columns(columns.max(1)),
        scales: Some(Scales {
            stored: scales,
            rows_each: 1,
            strides: [1, 0],
            made: Made::Times(1.0 / 127.0),
        }),
        zeros: None,
    })
}

fn half_bytes(name: &str, state: &str, bag: &mut Bag<'_>) -> Result<Quantized, Error> {
    let stored = bag.part(name, state)?;
    let state: State = serde_json::from_slice(stored.bytes(bag.shards))
        .map_err(|e| bad(name, format!("its part `{state}` can't be read: {e}")))?;
    let codes = bag.part(name, name)?;
    let (scales, made) = scales(name, &state, bag)?;
    let elements = state
        .shape
        .iter()
        .try_fold(1usize, |n, d| n.checked_mul(*d));
    // The bytes may be called elements of any type.
    let [_, columns] = state.shape[..] else {
        return Err(unfit(name, &codes));
    };
    let blocks = elements.map(|n| n.div_ceil(state.blocksize.max(1)));
    if columns == 0
        || state.blocksize == 0
        || elements.map(|n| n.div_ceil(2)) != Some(codes.range.len())
        || blocks != Some(scales.elements())
    {
        return Err(unfit(name, &codes));
    }
    let table = table(name, &format!("{name}.quant_map"), 16, bag)?;
    Ok(Quantized {
        name: name.to_string(),
        shape: state.shape,
        codes,
        packing: Packing::HighFirst,
        levels: Box::new(table),
        groups: Groups::Elements(state.blocksize),
        scales: Some(Scales {
            stored: scales,
            rows_each: 1,
            strides: [0, 1],
            made,
        }),
        zeros: None,
    })
}

/// The scales of blocks, as they are or as codes.
fn scales(name: &str, state: &State, bag: &mut Bag<'_>) -> Result<(Raw, Made), Error> {
    let scales = bag.part(name, &format!("{name}.absmax"))?;
    let Some(each) = state.nested_blocksize else {
        expect(name, &scales, Dtype::F32, &[scales.elements()])?;
        return Ok((scales, Made::Plain));
    };
    expect(name, &scales, Dtype::U8, &[scales.elements()])?;
    let outer = bag.part(name, &format!("{name}.nested_absmax"))?;
    let each = each.max(1);
    expect(
        name,
        &outer,
        Dtype::F32,
        &[scales.elements().div_ceil(each)],
    )?;
    let bytes = outer.bytes(bag.shards);
    let outer = (0..outer.elements()).map(|i| f32::from_bits(codes::word(bytes, i)));
    let nested = Nested {
        scales: outer.collect(),
        table: table(name, &format!("{name}.nested_quant_map"), 256, bag)?,
        each,
        offset: state.nested_offset.unwrap_or(0.0),
    };
    Ok((scales, Made::Nested(Box::new(nested))))
}

/// A table of levels.
fn table(name: &str, part: &str, len: usize, bag: &mut Bag<'_>) -> Result<Levels, Error> {
    let stored = bag.part(name, part)?;
    expect(name, &stored, Dtype::F32, &[len])?;
    let bytes = stored.bytes(bag.shards);
    let mut levels = [0.0; 256];
    for (i, level) in levels.iter_mut().take(len).enumerate() {
        *level = f32::from_bits(codes::word(bytes, i));
    }
    Ok(levels)
}
