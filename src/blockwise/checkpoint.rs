//! The original's tensors, as its blocks are run.

use dwindle_formats::gguf::TensorType;

use super::walk::Original;
use crate::architecture::ModelTensor;
use crate::llama::error::BoxError;
use crate::plan::{Subject, TensorError, TransformError};
use crate::writing::store_rows;

/// Elements from which a tensor is run in half floats to save memory.
const LARGE: u64 = 1 << 27;

/// The type in which products with a floating-point tensor are computed: processors without instructions
/// for BF16 are slow with it, F32 holds all values, and F16 takes half the memory.
pub fn running(tensor: &ModelTensor, source: TensorType) -> TensorType {
    match source {
        TensorType::BF16 | TensorType::F32 if tensor.elements() < LARGE => TensorType::F32,
        _ => TensorType::F16,
    }
}

/// Runs a checkpoint in its own types, save for BF16.
pub struct Checkpoint<'a> {
    subject: Subject<'a>,
}

impl<'a> Checkpoint<'a> {
    /// Of a model.
    pub fn new(subject: Subject<'a>) -> Checkpoint<'a> {
        Checkpoint { subject }
    }
}

impl Original for Checkpoint<'_> {
    fn ty(&self, tensor: usize) -> TensorType {
        let tensor = &self.subject.model.tensors[tensor];
        match tensor.source_type(self.subject.source) {
            _ if tensor.always_f32 => TensorType::F32,
            TensorType::BF16 => running(tensor, TensorType::BF16),
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
