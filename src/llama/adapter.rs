//! LoRA adapters, whose products are added while a model runs.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::ptr::NonNull;

use dwindle_formats::bounded;
use llama_cpp_sys_2 as sys;

use super::admission::file::admit_adapter;
use super::error::LlamaError;
use super::guard::{Failure, Stopped, guarded, logged};

/// An adapter, which llama.cpp frees with its model.
#[derive(Debug)]
pub(super) struct Adapter(NonNull<sys::llama_adapter_lora>);

// SAFETY: an adapter does not change after it is loaded.
unsafe impl Send for Adapter {}
// SAFETY: as above.
unsafe impl Sync for Adapter {}

impl Adapter {
    /// Loads an adapter's file for a model.
    ///
    /// # Safety
    /// The model is one that llama.cpp has loaded.
    pub unsafe fn load(model: *mut sys::llama_model, path: &Path) -> Result<Adapter, LlamaError> {
        // llama.cpp would wait for a pipe.
        bounded::open(path).map_err(|e| LlamaError::Adapter {
            path: path.to_path_buf(),
            reason: e.to_string(),
        })?;
        admit_adapter(path)?;
        let name = path.to_str().and_then(|p| CString::new(p).ok());
        let name = name.ok_or_else(|| LlamaError::Path(path.to_path_buf()))?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the model is valid by contract and the path is a C string.
        let (loaded, log) = logged(|failure| unsafe {
            dwindle_load_adapter(model, name.as_ptr(), &mut raw, failure)
        });
        let reason = loaded.err().map_or(log, |stopped| {
            raw = std::ptr::null_mut();
            stopped.reason
        });
        let raw = NonNull::new(raw).ok_or_else(|| LlamaError::Adapter {
            path: path.to_path_buf(),
            reason,
        })?;
        Ok(Adapter(raw))
    }
}

/// Applies adapters to a context, at full scale.
///
/// # Safety
/// The context is valid, and its model owns the adapters.
pub(super) unsafe fn apply(
    adapters: &[Adapter],
    context: NonNull<sys::llama_context>,
) -> Result<(), Stopped> {
    if adapters.is_empty() {
        return Ok(());
    }
    let mut adapters: Vec<_> = adapters.iter().map(|a| a.0.as_ptr()).collect();
    let mut scales = vec![1f32; adapters.len()];
    // SAFETY: valid by contract; both lists have as many elements. llama.cpp always answers with 0.
    guarded(|failure| unsafe {
        dwindle_set_adapters(
            context.as_ptr(),
            adapters.as_mut_ptr(),
            adapters.len(),
            scales.as_mut_ptr(),
            failure,
        )
    })
}

unsafe extern "C" {
    fn dwindle_load_adapter(
        model: *mut sys::llama_model,
        path: *const c_char,
        adapter: *mut *mut sys::llama_adapter_lora,
        failure: *mut Failure,
    ) -> c_int;
    fn dwindle_set_adapters(
        context: *mut sys::llama_context,
        adapters: *mut *mut sys::llama_adapter_lora,
        count: usize,
        scales: *mut f32,
        failure: *mut Failure,
    ) -> c_int;
}
