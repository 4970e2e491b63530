//! Chooses the heads to keep, and their lengths.

use rayon::prelude::*;

use super::StructureError;
use super::blocks::Attention;
use super::kept::{Kept, KeptBlock};
use super::orders::{Orders, failed, left};
use crate::method::projection::{Projection, ValueHeads};
use crate::method::value_output;
use crate::plan::Structure;

/// Chooses heads, and the directions of their values, as wished.
pub(super) fn choose(
    kept: &mut Kept,
    wanted: &Structure,
    orders: &Orders<'_>,
) -> Result<(), StructureError> {
    let whole = orders.blocks.value_length;
    let length = wanted.value_length.filter(|length| *length < whole);
    kept.value_length = length.unwrap_or(whole);
    let blocks = kept.blocks.par_iter_mut().enumerate();
    blocks.try_for_each(|(block, kept)| {
        let Some(kept) = kept else { return Ok(()) };
        if let Some(count) = wanted.heads {
            kept.heads = Some(strongest(block, count, orders)?);
        }
        if let Some(length) = length {
            kept.values = Some(directions(block, kept, length, orders)?);
        }
        Ok(())
    })
}

fn attention<'a>(block: usize, orders: &'a Orders<'_>) -> Result<&'a Attention, StructureError> {
    let instead = "omit `heads`, `value_length` and `key_length`";
    let attention = orders.blocks.all[block].attention.as_ref();
    attention.ok_or_else(|| orders.unknown(block, "attention", instead))
}

/// The kept heads of a block.
fn strongest(
    block: usize,
    count: usize,
    orders: &Orders<'_>,
) -> Result<Vec<usize>, StructureError> {
    let attention = attention(block, orders)?;
    let full = attention.kv_heads;
    if count == 0 || count > full {
        return Err(StructureError::Target {
            what: "`heads`",
            found: count.to_string(),
            expected: format!("1 to {full}"),
        });
    }
    let group = orders.blocks.shared_by * orders.blocks.value_length;
    let sweep = orders.order(attention.output, 0, group, full - count)?;
    Ok(left(&sweep, full, count))
}

/// The kept directions of a block's values.
fn directions(
    block: usize,
    kept: &KeptBlock,
    length: usize,
    orders: &Orders<'_>,
) -> Result<Projection, StructureError> {
    let attention = attention(block, orders)?;
    let tensor = orders.tensor(attention.output);
    let heads = ValueHeads {
        length: orders.blocks.value_length,
        shared_by: orders.blocks.shared_by,
        kept: kept.heads_of(attention),
    };
    let gram = orders.gram(tensor, 0)?;
    let w = orders.slice(tensor, 0)?;
    let rows = tensor.shape[1] as usize;
    let values = value_output::reduce(&w, rows, gram, &heads, length).map_err(failed(tensor));
    tensor.release(orders.subject.source);
    values
}
