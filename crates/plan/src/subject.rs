//! What is compressed, in one noun.

use std::ops::Range;

use dwindle_architecture::{Model, ModelTensor, values};
use dwindle_checkpoint::Source;
use dwindle_ggml::GgmlError;
use dwindle_statistics::Measured;

/// A model, where its tensors come from, and what was measured of it.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The tensors in llama.cpp's terms.
    pub model: &'a Model,
    /// Where they come from.
    pub source: &'a dyn Source,
    /// What is known of the inputs of their layers.
    pub measured: Measured<'a>,
}

impl<'a> Subject<'a> {
    /// A model of which nothing was measured.
    pub fn unmeasured(model: &'a Model, source: &'a dyn Source) -> Subject<'a> {
        Subject {
            model,
            source,
            measured: Measured::default(),
        }
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&'a ModelTensor> {
        self.model.tensors.iter().find(|t| t.name == name)
    }

    /// Rows of a tensor as floats.
    ///
    /// # Errors
    /// When ggml can't read the source's type as floats.
    pub fn rows(&self, tensor: &ModelTensor, rows: Range<u64>) -> Result<Vec<f32>, GgmlError> {
        values(tensor, self.source, rows)
    }

    /// All rows of a tensor as floats.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub fn values(&self, tensor: &ModelTensor) -> Result<Vec<f32>, GgmlError> {
        self.rows(tensor, 0..tensor.row_count())
    }

    /// Elements of all tensors.
    pub fn elements(&self) -> u64 {
        self.model.tensors.iter().map(ModelTensor::elements).sum()
    }

    /// Bytes of all tensors in the types that the source has.
    pub fn bytes(&self) -> u64 {
        let bytes = |t: &ModelTensor| t.source_type(self.source).bytes(&t.shape);
        self.model.tensors.iter().filter_map(bytes).sum()
    }
}
