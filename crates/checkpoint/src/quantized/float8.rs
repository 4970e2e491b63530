//! FP8: a byte for each element, with a scale for the matrix, for each row, or for each block.

use safetensors::Dtype;

use super::bag::{Bag, unfit};
use super::codes::{self, Packing};
use super::scales::{Groups, Made, Scales, is_number};
use super::tensor::Quantized;
use crate::Error;
use crate::raw::Raw;

/// What stands behind a weight's name in that of its scales, and what of the weight's name is left out before.
const SCALES: [(&str, &str); 3] = [
    ("", "_scale_inv"),
    ("", "_scale"),
    ("weight", "qscale_weight"),
];

/// The matrix of this name, if it is one of FP8. `block` is the size of blocks, rows and columns.
pub(super) fn take(
    name: &str,
    bag: &mut Bag<'_>,
    block: Option<[usize; 2]>,
) -> Result<Option<Quantized>, Error> {
    let exponent_bits = match bag.get(name).map(|raw| raw.dtype) {
        Some(Dtype::F8_E4M3) => 4,
        Some(Dtype::F8_E5M2) => 5,
        _ => return Ok(None),
    };
    let found = SCALES.iter().find_map(|(less, more)| {
        let scales = name.strip_suffix(less)?.to_string() + more;
        bag.get(&scales).map(|_| scales)
    });
    let expected = format!("{name}_scale_inv");
    let scales = bag.part(name, &found.unwrap_or(expected))?;
    let codes = bag.part(name, name)?;
    let (groups, scales) = by_scales(name, &codes.shape, scales, block)?;
    Ok(Some(Quantized {
        name: name.to_string(),
        shape: codes.shape.clone(),
        codes,
        packing: Packing::Bytes,
        levels: Box::new(codes::float8(exponent_bits)),
        groups,
        scales: Some(scales),
        zeros: None,
    }))
}

/// How the scales of a matrix lie whose codes do as its elements.
pub(super) fn by_scales(
    name: &str,
    shape: &[usize],
    mut stored: Raw,
    block: Option<[usize; 2]>,
) -> Result<(Groups, Scales), Error> {
    // Bytes are exponents (MXFP8).
    if stored.dtype == Dtype::U8 {
        stored.dtype = Dtype::F8_E8M0;
    }
    let &[rows, columns] = shape else {
        return Err(unfit(name, &stored));
    };
    let lines = |stored, rows_each, strides, each| {
        let scales = Scales {
            stored,
            rows_each,
            strides,
            made: Made::Plain,
        };
        Ok((Groups::Columns(each), scales))
    };
    if rows == 0 || columns == 0 || !is_number(stored.dtype) {
        return Err(unfit(name, &stored));
    }
    match (&stored.shape[..], block) {
        ([] | [1] | [1, 1], _) => lines(stored, 1, [0, 0], columns),
        ([n] | [n, 1], _) if *n == rows => lines(stored, 1, [1, 0], columns),
        (&[down, across], Some([tall, wide]))
            if tall > 0
                && wide > 0
                && [down, across] == [rows.div_ceil(tall), columns.div_ceil(wide)] =>
        {
            lines(stored, tall, [across, 1], wide)
        }
        // Blocks whose number says how large they are.
        (&[down, across], None)
            if down > 0
                && across > 0
                && rows.is_multiple_of(down)
                && columns.is_multiple_of(across) =>
        {
            lines(stored, rows / down, [across, 1], columns / across)
        }
        _ => Err(unfit(name, &stored)),
    }
}
