//! LoRA adapters, whose products are added while a model runs.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::ptr::NonNull;

use dwindle_formats::bounded;
use llama_cpp_sys_2 as sys;

use super::admission::file::admit_adapter;
use super::guard::{Failure, Stopped, guarded, logged};
use super::model::{LlamaError, Model, ModelOptions};

/// An adapter, which llama.cpp frees with its model.
#[derive(Debug)]
pub(super) struct Adapter(NonNull<sys::llama_adapter_lora>);

// SAFETY: an adapter does not change after it is loaded.
unsafe impl Send for Adapter {}
// SAFETY: as above.
unsafe impl Sync for Adapter {}

impl Model {
    /// Loads the adapters that the options name.
    pub(super) fn with_adapters(mut self, options: &ModelOptions) -> Result<Model, LlamaError> {
        for path in &options.lora {
            let adapter = self.adapter(path)?;
            self.adapters.push(adapter);
        }
        Ok(self)
    }

    fn adapter(&self, path: &Path) -> Result<Adapter, LlamaError> {
        // llama.cpp would wait for a pipe.
        bounded::open(path).map_err(|e| LlamaError::Adapter {
            path: path.to_path_buf(),
            reason: e.to_string(),
        })?;
        admit_adapter(path)?;
        let name = path.to_str().and_then(|p| CString::new(p).ok());
        let name = name.ok_or_else(|| LlamaError::Path(path.to_path_buf()))?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the model lives and the path is a C string.
        let (loaded, log) = logged(|failure| unsafe {
            dwindle_load_adapter(self.raw(), name.as_ptr(), &mut raw, failure)
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

    /// Applies the adapters to a context of this model, at full scale.
    pub(super) fn adapt(&self, context: NonNull<sys::llama_context>) -> Result<(), Stopped> {
        if self.adapters.is_empty() {
            return Ok(());
        }
        let mut adapters: Vec<_> = self.adapters.iter().map(|a| a.0.as_ptr()).collect();
        let mut scales = vec![1f32; adapters.len()];
        // SAFETY: the context is one of this model, which owns the adapters; both lists have as
        // many elements. llama.cpp always answers with 0.
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
