//! The linked ggml and llama-quantize as the [`Library`] of the rooms below.

mod mixture;

use std::ffi::c_void;

use dwindle_formats::gguf::TensorType;
use dwindle_ggml::{Choice, FileType, Library, MixtureError, MixtureTensor, ModelDesc};
use llama_cpp_sys_2 as sys;

/// llama.cpp as it is linked into this program.
pub(super) struct Linked;

fn ggml_type(ty: TensorType) -> sys::ggml_type {
    ty.id() as sys::ggml_type
}

fn traits(ty: TensorType) -> &'static sys::ggml_type_traits {
    // SAFETY: every `TensorType` id is below `GGML_TYPE_COUNT` of the pinned version, so the
    // function returns a pointer into a static table; it is read-only and never freed.
    unsafe { &*sys::ggml_get_type_traits(ggml_type(ty)) }
}

impl Library for Linked {
    fn quantize(
        &self,
        ty: TensorType,
        values: &[f32],
        row_len: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> bool {
        let weights = importance.map_or(std::ptr::null(), <[f32]>::as_ptr);
        let rows = values.len() / row_len;
        // SAFETY: the caller checks both lengths against the type's block size, so ggml reads
        // `rows * row_len` floats and writes exactly `out.len()` bytes; `weights` is null or has
        // `row_len` elements, and is not null for the types that assert it; the destination is
        // aligned for every block type. ggml initialises the tables it needs under its own lock.
        unsafe {
            let dst = out.as_mut_ptr().cast::<c_void>();
            let written = sys::ggml_quantize_chunk(
                ggml_type(ty),
                values.as_ptr(),
                dst,
                0,
                rows as i64,
                row_len as i64,
                weights,
            );
            sys::ggml_validate_row_data(ggml_type(ty), dst, written)
        }
    }

    fn dequantize(&self, ty: TensorType, bytes: &[u8], out: &mut [f32]) {
        let Some(to_float) = traits(ty).to_float else {
            return;
        };
        // SAFETY: the caller checks the byte length against the element count, the count is
        // a multiple of the block length, and the source is aligned for every block type.
        unsafe { to_float(bytes.as_ptr().cast(), out.as_mut_ptr(), out.len() as i64) };
    }

    fn mixture(
        &self,
        desc: &ModelDesc,
        tensors: &[MixtureTensor<'_>],
        file_type: FileType,
        has_importance: bool,
        pure: bool,
    ) -> Result<Vec<Choice>, MixtureError> {
        mixture::mixture_types(desc, tensors, file_type, has_importance, pure)
    }
}

#[cfg(test)]
mod tests;
