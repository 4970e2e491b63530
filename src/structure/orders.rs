//! Decides the order in which parts of a model are removed.

use super::StructureError;
use super::blocks::{FeedForward, Whole};
use crate::architecture::ModelTensor;
use crate::method::error::MethodError;
use crate::method::nystrom::{Elimination, eliminate};

/// The order in which parts of a model are removed.
pub(super) struct Orders<'a>(pub &'a Whole<'a>);

impl<'a> std::ops::Deref for Orders<'a> {
    type Target = Whole<'a>;

    fn deref(&self) -> &Whole<'a> {
        self.0
    }
}

impl Orders<'_> {
    pub fn ffn(&self, block: usize) -> Result<&FeedForward, StructureError> {
        let instead = "omit `ffn` and `keep`";
        let ffn = self.blocks.all[block].ffn.as_ref();
        ffn.ok_or_else(|| self.unknown(block, "feed-forward layer", instead))
    }

    /// The order in which groups of columns of a matrix are removed.
    pub fn order(
        &self,
        tensor: usize,
        slice: usize,
        group: usize,
        most: usize,
    ) -> Result<Elimination, StructureError> {
        let tensor = self.tensor(tensor);
        let gram = self.gram(tensor, slice)?;
        let w = self.slice(tensor, slice)?;
        let rows = tensor.shape[1] as usize;
        let sweep = eliminate(&w, rows, gram, group, most).map_err(failed(tensor));
        tensor.release(self.subject.source);
        sweep
    }

    /// The order in which the columns of each expert are removed, until `least` are left.
    pub fn columns(
        &self,
        ffn: &FeedForward,
        least: usize,
    ) -> Result<Vec<Elimination>, StructureError> {
        (0..ffn.experts)
            .map(|slice| self.order(ffn.down, slice, 1, ffn.width - least))
            .collect()
    }
}

/// The `stay` parts of `full` that an order keeps, ascending.
pub(super) fn left(sweep: &Elimination, full: usize, stay: usize) -> Vec<usize> {
    let mut stays = vec![true; full];
    sweep.order[..full - stay]
        .iter()
        .for_each(|i| stays[*i] = false);
    (0..full).filter(|i| stays[*i]).collect()
}

/// Names the tensor that a method failed on.
pub(super) fn failed(tensor: &ModelTensor) -> impl Fn(MethodError) -> StructureError {
    let tensor = tensor.name.clone();
    move |source| StructureError::Method {
        tensor: tensor.clone(),
        source,
    }
}
