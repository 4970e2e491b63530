//! Fits the matrices that read the kept elements, by the statistics.

use std::collections::HashMap;

use rayon::prelude::*;

use super::blocks::{Blocks, Whole};
use super::kept::Kept;
use super::orders::failed;
use super::pairs::{Pairs, columns};
use super::rotary::own_scale;
use super::{StructureError, form};
use crate::method::nystrom::refit;
use crate::method::projection::Projection;
use crate::method::value_output;

/// Fitted matrices, by their position in [`Model::tensors`](crate::architecture::Model::tensors):
/// rows of the columns that are kept, the slices of a stack one after another.
pub type Fits = HashMap<usize, Vec<f32>>;

/// A matrix that reads less than it did.
#[derive(Debug, Clone, PartialEq)]
pub struct Narrowed {
    /// Its block.
    pub block: usize,
    /// Its position in [`Model::tensors`](crate::architecture::Model::tensors).
    pub tensor: usize,
    /// What it reads now.
    pub inputs: Inputs,
}

/// The kept inputs of a matrix.
#[derive(Debug, Clone, PartialEq)]
pub enum Inputs {
    /// Some of them, ascending, one list for each slice.
    Columns(Vec<Vec<usize>>),
    /// Values in fewer directions.
    Values(Projection),
}

impl Inputs {
    /// Kept inputs.
    pub fn width(&self) -> usize {
        match self {
            Inputs::Columns(lists) => lists.first().map_or(0, Vec::len),
            Inputs::Values(projection) => projection.width(),
        }
    }
}

/// Every matrix that reads less, in the order of evaluation.
pub fn narrowed(kept: &Kept, blocks: &Blocks) -> Vec<Narrowed> {
    let mut all = Vec::new();
    for (number, (kept, block)) in kept.blocks.iter().zip(&blocks.all).enumerate() {
        let Some(kept) = kept else { continue };
        let inputs = match (&kept.values, &kept.heads) {
            (Some(projection), _) => Some(Inputs::Values(projection.clone())),
            (None, Some(heads)) => {
                let width = blocks.shared_by * blocks.value_length;
                let columns = heads.iter().flat_map(|h| h * width..(h + 1) * width);
                Some(Inputs::Columns(vec![columns.collect()]))
            }
            (None, None) => None,
        };
        if let (Some(inputs), Some(attention)) = (inputs, &block.attention) {
            all.push(Narrowed {
                block: number,
                tensor: attention.output,
                inputs,
            });
        }
        if let Some(ffn) = block.ffn.as_ref().filter(|_| !kept.columns.is_empty()) {
            all.push(Narrowed {
                block: number,
                tensor: ffn.down,
                inputs: Inputs::Columns(kept.columns.clone()),
            });
        }
    }
    all
}

/// Fits every matrix that reads less to the rest of its input, and makes the values that it reads.
///
/// # Errors
/// [`StructureError`].
pub fn fit(whole: &Whole<'_>, kept: &Kept) -> Result<Fits, StructureError> {
    let blocks = &whole.blocks;
    let one = |narrowed: &Narrowed| -> Result<(usize, Vec<f32>), StructureError> {
        let tensor = whole.tensor(narrowed.tensor);
        let rows = tensor.shape[1] as usize;
        let mut fitted = Vec::new();
        match &narrowed.inputs {
            Inputs::Columns(lists) => {
                for (slice, columns) in lists.iter().enumerate() {
                    let w = whole.slice(tensor, slice)?;
                    let gram = whole.gram(tensor, slice)?;
                    fitted.extend(refit(&w, rows, gram, columns).map_err(failed(tensor))?);
                }
            }
            Inputs::Values(projection) => {
                let w = whole.slice(tensor, 0)?;
                let gram = whole.gram(tensor, 0)?;
                fitted = value_output::refit(&w, rows, gram, projection).map_err(failed(tensor))?;
            }
        }
        tensor.release(whole.subject.source);
        Ok((narrowed.tensor, fitted))
    };
    let mut fits: Fits = narrowed(kept, blocks)
        .par_iter()
        .map(one)
        .collect::<Result<_, _>>()?;
    for (kept, block) in kept.blocks.iter().zip(&blocks.all) {
        let values = kept.as_ref().and_then(|kept| kept.values.as_ref());
        let (Some(projection), Some(attention)) = (values, &block.attention) else {
            continue;
        };
        for index in &attention.v {
            let tensor = whole.tensor(*index);
            let w = whole.values(tensor)?;
            let made = projection.values(&w, columns(tensor));
            fits.insert(*index, made);
        }
    }
    if let Some(pairs) = &kept.pairs {
        fits.extend(queries(whole, kept, pairs)?);
    }
    Ok(fits)
}

/// Queries of kept heads with fewer pairs, scaled as scores of shorter heads are.
fn queries(whole: &Whole<'_>, kept: &Kept, pairs: &Pairs) -> Result<Fits, StructureError> {
    let (model, blocks) = (whole.subject.model, &whole.blocks);
    let target = form::architecture(kept, model, blocks)?;
    let order = form::head_order(kept, blocks, [&model.architecture, target]);
    let order = order.unwrap_or_default();
    let shorter = (order.len() as f32 / blocks.key_length as f32).sqrt();
    let scale = own_scale(model).map_or(shorter, |_| 1.0);
    let mut made = Fits::new();
    for (number, (kept, block)) in kept.blocks.iter().zip(&blocks.all).enumerate() {
        let (Some(kept), Some(attention)) = (kept, &block.attention) else {
            continue;
        };
        for index in &attention.q {
            let tensor = whole.tensor(*index);
            let columns = columns(tensor);
            let w = whole.values(tensor)?;
            let turned = pairs.turn(&w, tensor, number, model, blocks.key_length);
            let heads = kept.heads_of(attention).into_iter();
            let heads = heads.flat_map(|h| h * blocks.shared_by..(h + 1) * blocks.shared_by);
            let rows = heads.flat_map(|h| order.iter().map(move |e| h * blocks.key_length + e));
            let values = rows.flat_map(|row| &turned[row * columns..(row + 1) * columns]);
            made.insert(*index, values.map(|v| v * scale).collect());
        }
    }
    Ok(made)
}
