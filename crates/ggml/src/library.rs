//! The C library behind the types, as the rooms below llama.cpp see it.
//!
//! Building llama.cpp takes minutes. Crates that read, plan and compute need only a few of its
//! functions, so they call these through a trait. The program that links llama.cpp installs an
//! implementation, once, before it opens a model. Without one, 32- and 16-bit floats still work.

use std::sync::OnceLock;

use dwindle_formats::gguf::TensorType;

use crate::mixture::{Choice, FileType, MixtureError, MixtureTensor, ModelDesc};

/// What ggml and llama-quantize do. Callers have checked lengths, types and values; implementations
/// may rely on it.
pub trait Library: Sync {
    /// Writes whole rows of a block-quantized type. Whether all blocks are valid: scales may
    /// overflow. `out` is aligned to 4 bytes.
    fn quantize(
        &self,
        ty: TensorType,
        values: &[f32],
        row_len: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> bool;

    /// Reads blocks as floats. `bytes` are aligned to 4 bytes.
    fn dequantize(&self, ty: TensorType, bytes: &[u8], out: &mut [f32]);

    /// The type of each tensor in one of llama-quantize's mixtures.
    ///
    /// # Errors
    /// As [`mixture_types`](crate::mixture_types).
    fn mixture(
        &self,
        desc: &ModelDesc,
        tensors: &[MixtureTensor<'_>],
        file_type: FileType,
        has_importance: bool,
        pure: bool,
    ) -> Result<Vec<Choice>, MixtureError>;
}

static LIBRARY: OnceLock<&'static dyn Library> = OnceLock::new();

/// Makes a library the one that this process uses. The first call counts.
pub fn install(library: &'static dyn Library) {
    // A second library would be the same one: a process links llama.cpp once.
    let _ = LIBRARY.set(library);
}

pub(crate) fn library() -> Option<&'static dyn Library> {
    LIBRARY.get().copied()
}

/// The types that llama-quantize gives the tensors of a model, in the order of `tensors`:
/// its mixture, its fallbacks for rows that don't divide into blocks, and its treatment of tied
/// embeddings included.
///
/// `has_importance` is whether an importance matrix is given at all; `pure` turns the mixture off,
/// so that every tensor gets the file type's default type.
///
/// # Errors
/// An architecture that llama.cpp does not know, and shapes that ggml can't hold.
pub fn mixture_types(
    desc: &ModelDesc,
    tensors: &[MixtureTensor<'_>],
    file_type: FileType,
    has_importance: bool,
    pure: bool,
) -> Result<Vec<Choice>, MixtureError> {
    let library = library().ok_or(MixtureError::NotLinked(file_type.name))?;
    library.mixture(desc, tensors, file_type, has_importance, pure)
}
