//! Tensors as the files of a folder hold them, before anything is made of them.

use std::ops::Range;

use dwindle_mapped::Mapping;
use safetensors::Dtype;

/// A tensor of a file.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    /// Its name there.
    pub(crate) name: String,
    /// Its elements.
    pub(crate) dtype: Dtype,
    /// Its dimensions, rows first.
    pub(crate) shape: Vec<usize>,
    /// Which file holds it.
    pub(crate) shard: usize,
    /// Where in that file. Whoever makes a `Raw` holds this against the file, dtype and shape.
    pub(crate) range: Range<usize>,
}

impl Raw {
    /// Its bytes.
    pub(crate) fn bytes<'a>(&self, shards: &'a [Mapping]) -> &'a [u8] {
        &shards[self.shard][self.range.clone()]
    }

    /// Its elements.
    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}
