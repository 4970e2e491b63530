//! The matrices that read what is kept, fitted to what calibration saw.

use std::collections::HashMap;

use rayon::prelude::*;

use super::StructureError;
use super::blocks::Blocks;
use super::budget::{Kept, failed, gram, slice_values};
use crate::architecture::Model;
use crate::checkpoint::Source;
use crate::method::nystrom::refit;
use crate::statistics::Measured;

/// Fitted matrices, by their position in [`Model::tensors`]: rows of the columns that are kept, the
/// slices of a stack one after another.
pub type Fits = HashMap<usize, Vec<f32>>;

/// A matrix whose columns are not all kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Narrowed {
    /// Its block.
    pub block: usize,
    /// Its position in [`Model::tensors`].
    pub tensor: usize,
    /// The columns that are kept, ascending, one list for each slice.
    pub columns: Vec<Vec<usize>>,
}

/// Every matrix that loses columns, in the order of evaluation.
pub fn narrowed(kept: &Kept, blocks: &Blocks) -> Vec<Narrowed> {
    let mut all = Vec::new();
    for (number, (kept, block)) in kept.blocks.iter().zip(&blocks.all).enumerate() {
        let Some(kept) = kept else { continue };
        if let (Some(heads), Some(attention)) = (&kept.heads, &block.attention) {
            let width = blocks.shared_by * blocks.value_length;
            let columns = heads.iter().flat_map(|h| h * width..(h + 1) * width);
            all.push(Narrowed {
                block: number,
                tensor: attention.output,
                columns: vec![columns.collect()],
            });
        }
        if let Some(ffn) = block.ffn.as_ref().filter(|_| !kept.columns.is_empty()) {
            all.push(Narrowed {
                block: number,
                tensor: ffn.down,
                columns: kept.columns.clone(),
            });
        }
    }
    all
}

/// Fits every matrix that loses columns to the rest of its input.
///
/// # Errors
/// [`StructureError`].
pub fn fit(
    kept: &Kept,
    model: &Model,
    blocks: &Blocks,
    source: &dyn Source,
    measured: &Measured<'_>,
) -> Result<Fits, StructureError> {
    let one = |narrowed: &Narrowed| -> Result<(usize, Vec<f32>), StructureError> {
        let tensor = &model.tensors[narrowed.tensor];
        let mut fitted = Vec::new();
        for (slice, columns) in narrowed.columns.iter().enumerate() {
            let w = slice_values(tensor, slice, source)?;
            let gram = gram(measured, tensor, slice)?;
            let rows = tensor.shape[1] as usize;
            fitted.extend(refit(&w, rows, gram, columns).map_err(failed(tensor))?);
        }
        tensor.release(source);
        Ok((narrowed.tensor, fitted))
    };
    narrowed(kept, blocks).par_iter().map(one).collect()
}
