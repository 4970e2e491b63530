//! Replacing the weights of a loaded model, to measure what a change costs or to fit later layers
//! to earlier ones.

use std::ffi::CString;
use std::ptr::NonNull;
use std::sync::{MutexGuard, TryLockError};

use dwindle_formats::gguf::TensorType;
use llama_cpp_sys_2 as sys;

use super::error::LlamaError;
use super::model::Model;
use crate::ggml;

unsafe extern "C" {
    fn dwindle_find_tensor(
        model: *const sys::llama_model,
        name: *const std::ffi::c_char,
    ) -> *mut sys::ggml_tensor;
}

impl Model {
    /// Whether llama.cpp has loaded a weight of this name.
    pub fn has_weight(&self, weight: &str) -> bool {
        find(self, weight).is_some()
    }

    /// Gives a weight other values, rounded to the type that it was loaded in. The next evaluation
    /// uses them. Of a weight that is computed with factors, those of its factors can be replaced
    /// that are in memory as they are in the container, under the names that they have there.
    ///
    /// # Errors
    /// The model is mapped from a file or evaluates at this moment, it has no such weight, or one
    /// of another size or of a type that can't be written.
    pub fn replace(&self, weight: &str, values: &[f32]) -> Result<(), LlamaError> {
        let _busy = self.idle(weight)?;
        // SAFETY: nobody evaluates while the lock is held.
        unsafe { replace(self, weight, values) }
    }

    /// As [`Self::replace`], with bytes in the type that the weight was loaded in.
    ///
    /// # Errors
    /// As [`Self::replace`].
    pub fn replace_bytes(&self, weight: &str, bytes: &[u8]) -> Result<(), LlamaError> {
        let _busy = self.idle(weight)?;
        if !self.owns_weights() {
            return Err(failed(weight, "the model is mapped from a file"));
        }
        for tensor in places(self, weight)? {
            // SAFETY: the model's tensors live as long as it, and nobody evaluates while the lock is
            // held.
            unsafe { set_bytes(tensor, weight, bytes)? };
        }
        Ok(())
    }

    /// The lock that evaluations hold.
    fn idle(&self, weight: &str) -> Result<MutexGuard<'_, ()>, LlamaError> {
        match self.busy.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(guard)) => Ok(guard.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(failed(weight, "the model evaluates at this moment"))
            }
        }
    }
}

/// As [`Model::replace`].
///
/// # Safety
/// No other thread evaluates the model, and no node that llama.cpp computes at this moment reads
/// the weight.
pub(super) unsafe fn replace(
    model: &Model,
    weight: &str,
    values: &[f32],
) -> Result<(), LlamaError> {
    if !model.owns_weights() {
        return Err(failed(weight, "the model is mapped from a file"));
    }
    let tensors = places(model, weight)?;
    for tensor in tensors {
        // SAFETY: the model's tensors live as long as it, and nobody uses them now.
        unsafe { set(tensor, weight, values)? };
    }
    Ok(())
}

/// The tensors that hold a weight, or an operand of one.
fn places(model: &Model, name: &str) -> Result<Vec<*mut sys::ggml_tensor>, LlamaError> {
    if let Some(devices) = &model.devices {
        // The input factor of embeddings is there as columns and, if at all, as rows.
        if !devices.operands(&format!("{name}.t")).is_empty() {
            return Err(failed(name, "it is the input factor of embeddings"));
        }
        let operands = devices.operands(name);
        if !operands.is_empty() {
            return Ok(operands);
        }
        if devices.contracts(name) {
            let reason = format!("it is computed with factors; replace those (`{name}.a`)");
            return Err(failed(name, &reason));
        }
    }
    let unknown = || failed(name, "the model has no such weight");
    Ok(vec![find(model, name).ok_or_else(unknown)?.as_ptr()])
}

/// # Safety
/// The tensor is allocated, and nobody uses it now.
unsafe fn set(
    tensor: *mut sys::ggml_tensor,
    weight: &str,
    values: &[f32],
) -> Result<(), LlamaError> {
    // SAFETY: valid by contract.
    let (ty, ne) = unsafe { ((*tensor).type_, (*tensor).ne) };
    let elements: i64 = ne.iter().product();
    if elements != values.len() as i64 {
        let reason = format!("it has {elements} elements, not {}", values.len());
        return Err(failed(weight, &reason));
    }
    let ty = TensorType::from_id(ty)
        .ok_or_else(|| failed(weight, "llama.cpp holds it in an unknown type"))?;
    // SAFETY: the tensor is valid.
    let len = unsafe { sys::ggml_nbytes(tensor) };
    let mut bytes = vec![0; len];
    ggml::quantize(ty, values, ne[0] as usize, None, &mut bytes)
        .map_err(|e| failed(weight, &e.to_string()))?;
    // SAFETY: valid by contract.
    unsafe { set_bytes(tensor, weight, &bytes) }
}

/// # Safety
/// The tensor is allocated, and nobody uses it now.
unsafe fn set_bytes(
    tensor: *mut sys::ggml_tensor,
    weight: &str,
    bytes: &[u8],
) -> Result<(), LlamaError> {
    // SAFETY: the tensor is valid.
    let len = unsafe { sys::ggml_nbytes(tensor) };
    if len != bytes.len() {
        let reason = format!("it has {len} bytes, not {}", bytes.len());
        return Err(failed(weight, &reason));
    }
    // SAFETY: the weight is allocated and has as many bytes; its backend takes them in the order
    // of a file and lays them out as it needs.
    unsafe { sys::ggml_backend_tensor_set(tensor, bytes.as_ptr().cast(), 0, len) };
    Ok(())
}

fn find(model: &Model, weight: &str) -> Option<NonNull<sys::ggml_tensor>> {
    let name = CString::new(weight).ok()?;
    // SAFETY: the model lives and the name is a C string.
    NonNull::new(unsafe { dwindle_find_tensor(model.raw(), name.as_ptr()) })
}

fn failed(weight: &str, reason: &str) -> LlamaError {
    LlamaError::Replace {
        weight: weight.to_string(),
        reason: reason.to_string(),
    }
}
