//! The original's tensors, as its blocks are run.

use dwindle_formats::gguf::TensorType;

use super::walk::Original;
use crate::llama::error::BoxError;
use crate::plan::{Subject, TensorError, TransformError};
use crate::writing::store_rows;

/// Runs a checkpoint in its own types, save that half floats of the wide kind, which processors without
/// their instructions compute slowly, are run in another.
pub struct Checkpoint<'a> {
    subject: Subject<'a>,
    /// What stands for BF16.
    wide: TensorType,
}

impl<'a> Checkpoint<'a> {
    /// With BF16 as `wide`: F16 is exact where it holds all values, F32 always.
    pub fn new(subject: Subject<'a>, wide: TensorType) -> Checkpoint<'a> {
        Checkpoint { subject, wide }
    }
}

impl Original for Checkpoint<'_> {
    fn ty(&self, tensor: usize) -> TensorType {
        let tensor = &self.subject.model.tensors[tensor];
        match tensor.source_type(self.subject.source) {
            _ if tensor.always_f32 => TensorType::F32,
            TensorType::BF16 => self.wide,
            ty => ty,
        }
    }

    fn bytes(&self, tensor: usize, ty: TensorType) -> Result<Vec<u8>, BoxError> {
        let tensor = &self.subject.model.tensors[tensor];
        let made = store_rows(tensor, self.subject.source, ty, 0..tensor.row_count(), None);
        tensor.release(self.subject.source);
        let (bytes, _) = made.map_err(TensorError::of::<TransformError>(&tensor.name))?;
        Ok(bytes.into_owned())
    }
}
