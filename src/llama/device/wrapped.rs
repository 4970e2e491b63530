//! A wrapped device, as all that belongs to it sees it.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use llama_cpp_sys_2 as sys;
use sys::ggml_tensor;

use super::internals::{
    ggml_backend_buffer, ggml_backend_buffer_type, ggml_backend_device, ggml_backend_reg,
};
use super::live::{Live, WeightBuffer};
use super::weights::{Fetch, Weights};
use crate::llama::error::BoxError;

/// What the devices of one model share.
pub(super) struct Shared {
    pub weights: Weights,
    /// All weights of the model: llama.cpp allocates them and other things through one door.
    pub names: HashSet<String>,
    /// While the model loads.
    pub fetch: Mutex<Option<Fetch>>,
    pub error: Mutex<Option<BoxError>>,
    /// Contracted weights that the graph uses as no contraction can be.
    pub used_whole: Mutex<BTreeSet<String>>,
    /// Bytes of operands in buffers of their own, which llama.cpp does not know of.
    pub elsewhere: AtomicUsize,
}

/// A wrapped device. ggml holds pointers into it, so it never moves.
pub(super) struct Device {
    pub shared: Arc<Shared>,
    pub raw: ggml_backend_device,
    pub reg: ggml_backend_reg,
    pub general: ggml_backend_buffer_type,
    pub for_weights: ggml_backend_buffer_type,
    pub name: CString,
    pub weights_name: CString,
    pub inner: sys::ggml_backend_dev_t,
    pub inner_type: sys::ggml_backend_buffer_type_t,
    pub special_types: Vec<sys::ggml_backend_buffer_type_t>,
    /// Where weights go that stay in main memory.
    pub host: sys::ggml_backend_buffer_type_t,
    pub buffers: Mutex<HashMap<usize, WeightBuffer>>,
}

impl std::ops::Deref for Device {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Device {
    pub fn general_type(&self) -> sys::ggml_backend_buffer_type_t {
        (&raw const self.general).cast_mut().cast()
    }

    pub fn weights_type(&self) -> sys::ggml_backend_buffer_type_t {
        (&raw const self.for_weights).cast_mut().cast()
    }

    pub fn is_weights(&self, buft: sys::ggml_backend_buffer_type_t) -> bool {
        buft == self.weights_type()
    }

    /// Fills an operand with what the loader fetches. An error ends all further fetching.
    pub fn fill(&self, index: usize, operand: *mut ggml_tensor) {
        let mut error = lock(&self.error);
        if error.is_some() {
            return;
        }
        let fetch = lock(&self.fetch);
        let Some(fetch) = &*fetch else {
            return;
        };
        // SAFETY: the operand is valid, as the buffer that holds it.
        let expected = unsafe { sys::ggml_nbytes(operand) };
        let fetched = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fetch(index)))
            .unwrap_or_else(|_| Err("making an operand failed unexpectedly".into()));
        match fetched {
            Ok(bytes) if bytes.len() == expected => {
                // SAFETY: the operand is allocated and has as many bytes.
                unsafe {
                    sys::ggml_backend_tensor_set(operand, bytes.as_ptr().cast(), 0, expected);
                }
            }
            Ok(bytes) => {
                let name = &self.weights.operands[index].name;
                let problem = format!("`{name}` has {} bytes, not {expected}", bytes.len());
                *error = Some(problem.into());
            }
            Err(problem) => *error = Some(problem),
        }
    }

    pub fn buffers(&self) -> std::sync::MutexGuard<'_, HashMap<usize, WeightBuffer>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tensors of an operand of this name, one for each buffer that has it.
    pub fn operands(&self, name: &str) -> Vec<*mut ggml_tensor> {
        let buffers = self.buffers();
        let all = buffers.values().flat_map(|buffer| &buffer.operands);
        all.filter(|(index, _)| self.weights.operands[*index].name == name)
            .map(|(_, tensor)| *tensor)
            .collect()
    }

    /// Whether a list to be allocated holds weights of the model.
    ///
    /// # Safety
    /// The tensors are valid.
    pub unsafe fn holds(&self, list: &[*mut ggml_tensor]) -> bool {
        list.iter().any(|t| {
            // SAFETY: the caller's tensors are valid.
            unsafe { self.names.contains(&*name_of(*t)) }
        })
    }
}

/// What stands for a weight, if the tensor is a contracted one of this device, or a view of one.
///
/// # Safety
/// The tensor is null or valid.
pub(super) unsafe fn live<'a>(device: &Device, tensor: *const ggml_tensor) -> Option<&'a Live> {
    // SAFETY: valid by contract; in a buffer of weights `extra` is null or a `Live` of the buffer.
    unsafe {
        let tensor = tensor.as_ref()?;
        let root = tensor.view_src.as_ref().unwrap_or(tensor);
        let buffer = root.buffer.cast::<ggml_backend_buffer>().as_ref()?;
        if root.extra.is_null() || !device.is_weights(buffer.buft) {
            return None;
        }
        device
            .weights
            .contractions
            .contains_key(&*name_of(root))
            .then(|| root.extra.cast::<Live>().as_ref())?
    }
}

/// A tensor of this type and shape, its elements in a row, without data.
pub(super) fn tensor(ty: sys::ggml_type, ne: [i64; 4]) -> ggml_tensor {
    // SAFETY: numbers and pointers, for all of which zero is a value.
    let mut t: ggml_tensor = unsafe { std::mem::zeroed() };
    t.type_ = ty;
    t.ne = ne;
    // SAFETY: the type is one of ggml's.
    unsafe {
        t.nb[0] = sys::ggml_type_size(ty);
        t.nb[1] = sys::ggml_row_size(ty, ne[0]);
    }
    t.nb[2] = t.nb[1] * ne[1] as usize;
    t.nb[3] = t.nb[2] * ne[2] as usize;
    t
}

/// # Safety
/// The tensor is valid.
pub(super) unsafe fn name_of<'a>(tensor: *const ggml_tensor) -> Cow<'a, str> {
    // SAFETY: valid by contract, and ggml ends names with a zero.
    unsafe { CStr::from_ptr((*tensor).name.as_ptr()) }.to_string_lossy()
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
