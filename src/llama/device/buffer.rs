//! Buffer types: what llama.cpp allocates on the device. Weights get a buffer that is not host
//! memory for llama.cpp, so that it hands their bytes over instead of reading them into place, and
//! in which a contracted weight takes the room of its operands alone. Everything else (keys and
//! values, results) goes to the inner device's own buffers.

use std::ffi::{c_char, c_int, c_void};
use std::ptr::null_mut;

use llama_cpp_sys_2 as sys;
use sys::ggml_tensor;

use super::internals::{
    ggml_backend_buffer, ggml_backend_buffer_i, ggml_backend_buffer_type,
    ggml_backend_buffer_type_i,
};
use super::layout::{Layout, place};
use super::live::WeightBuffer;
use super::wrapped::{Device, live};
use crate::llama::guard::CalledBack;

/// The functions of both buffer types.
pub(super) const TYPE: ggml_backend_buffer_type_i = ggml_backend_buffer_type_i {
    get_name: Some(get_name),
    alloc_buffer: Some(alloc_buffer),
    alloc_buffer_n: Some(alloc_buffer_n),
    get_alignment: Some(get_alignment),
    get_max_size: Some(get_max_size),
    get_alloc_size: Some(get_alloc_size),
    get_alloc_size_n: Some(get_alloc_size_n),
    is_host: Some(is_host),
};

/// The device that a buffer type belongs to.
unsafe fn device<'a>(buft: sys::ggml_backend_buffer_type_t) -> &'a Device {
    // SAFETY: the functions of this file are those of buffer types that only `Device` makes, and
    // their context is the device, which outlives everything that is allocated on it.
    unsafe {
        &*(*buft.cast::<ggml_backend_buffer_type>())
            .context
            .cast::<Device>()
    }
}

unsafe extern "C" fn get_name(buft: sys::ggml_backend_buffer_type_t) -> *const c_char {
    // SAFETY: as `device` says.
    let device = unsafe { device(buft) };
    if device.is_weights(buft) {
        device.weights_name.as_ptr()
    } else {
        device.name.as_ptr()
    }
}

unsafe extern "C" fn alloc_buffer(
    buft: sys::ggml_backend_buffer_type_t,
    size: usize,
) -> sys::ggml_backend_buffer_t {
    let _called = CalledBack::begin();
    // SAFETY: as `device` says; the inner type is one of ggml's.
    unsafe { sys::ggml_backend_buft_alloc_buffer(device(buft).inner_type, size) }
}

unsafe extern "C" fn get_alignment(buft: sys::ggml_backend_buffer_type_t) -> usize {
    // SAFETY: as in `alloc_buffer`.
    unsafe { sys::ggml_backend_buft_get_alignment(device(buft).inner_type) }
}

unsafe extern "C" fn get_max_size(buft: sys::ggml_backend_buffer_type_t) -> usize {
    // SAFETY: as in `alloc_buffer`.
    unsafe { sys::ggml_backend_buft_get_max_size(device(buft).inner_type) }
}

unsafe extern "C" fn get_alloc_size(
    buft: sys::ggml_backend_buffer_type_t,
    tensor: *const ggml_tensor,
) -> usize {
    let _called = CalledBack::begin();
    // SAFETY: as in `alloc_buffer`; the tensor is ggml's.
    unsafe { sys::ggml_backend_buft_get_alloc_size(device(buft).inner_type, tensor) }
}

unsafe extern "C" fn is_host(buft: sys::ggml_backend_buffer_type_t) -> bool {
    // SAFETY: as in `alloc_buffer`.
    unsafe {
        let device = device(buft);
        !device.is_weights(buft) && sys::ggml_backend_buft_is_host(device.inner_type)
    }
}

unsafe extern "C" fn get_alloc_size_n(
    buft: sys::ggml_backend_buffer_type_t,
    tensors: *mut *mut ggml_tensor,
    count: c_int,
) -> usize {
    let _called = CalledBack::begin();
    // SAFETY: ggml passes an array of that many tensors.
    unsafe {
        let device = device(buft);
        let list = std::slice::from_raw_parts(tensors, count as usize);
        if device.holds(list) {
            Layout::of(device, list).size
        } else {
            sys::ggml_backend_buft_get_alloc_size_n(device.inner_type, tensors, count)
        }
    }
}

unsafe extern "C" fn alloc_buffer_n(
    buft: sys::ggml_backend_buffer_type_t,
    tensors: *mut *mut ggml_tensor,
    count: c_int,
) -> sys::ggml_backend_buffer_t {
    let _called = CalledBack::begin();
    // SAFETY: ggml passes an array of that many tensors, not yet allocated.
    unsafe {
        let device = device(buft);
        let list = std::slice::from_raw_parts(tensors, count as usize);
        if !device.holds(list) {
            return sys::ggml_backend_buft_alloc_buffer_n(device.inner_type, tensors, count);
        }
        let layout = Layout::of(device, list);
        let buffer = sys::ggml_backend_buft_alloc_buffer(device.inner_type, layout.size.max(1));
        if buffer.is_null() {
            return null_mut();
        }
        let raw = &mut *buffer.cast::<ggml_backend_buffer>();
        let weights = WeightBuffer {
            inner: raw.iface,
            lives: Vec::new(),
            operands: Vec::new(),
            buffers: Vec::new(),
        };
        raw.iface.free_buffer = Some(free_buffer);
        raw.iface.init_tensor = Some(init_tensor);
        raw.iface.set_tensor = Some(set_tensor);
        raw.iface.set_tensor_2d = None;
        raw.iface.cpy_tensor = None;
        raw.buft = device.weights_type();
        device.buffers().insert(buffer as usize, weights);
        if place(device, buffer, list, &layout) {
            return buffer;
        }
        sys::ggml_backend_buffer_free(buffer);
        null_mut()
    }
}

/// The device of a buffer of weights.
unsafe fn device_of<'a>(buffer: sys::ggml_backend_buffer_t) -> &'a Device {
    // SAFETY: `alloc_buffer_n` has given the buffer the device's type for weights.
    unsafe { device((*buffer.cast::<ggml_backend_buffer>()).buft) }
}

unsafe extern "C" fn free_buffer(buffer: sys::ggml_backend_buffer_t) {
    let _called = CalledBack::begin();
    // SAFETY: ggml frees a buffer once, and calls the inner function as it would have.
    unsafe {
        let Some(weights) = device_of(buffer).buffers().remove(&(buffer as usize)) else {
            return;
        };
        if let Some(free) = weights.inner.free_buffer {
            free(buffer);
        }
    }
}

unsafe extern "C" fn init_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut ggml_tensor,
) -> sys::ggml_status {
    let _called = CalledBack::begin();
    // SAFETY: the buffer is one of weights and the tensor is ggml's.
    unsafe {
        if !(*tensor).view_src.is_null() {
            return sys::GGML_STATUS_SUCCESS;
        }
        match inner_functions(buffer).init_tensor {
            Some(init) => init(buffer, tensor),
            None => sys::GGML_STATUS_SUCCESS,
        }
    }
}

unsafe extern "C" fn set_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut ggml_tensor,
    data: *const c_void,
    offset: usize,
    size: usize,
) {
    let _called = CalledBack::begin();
    // SAFETY: the buffer is one of weights, and the tensor lies in it.
    unsafe {
        let device = device_of(buffer);
        let Some(live) = live(device, tensor) else {
            if let Some(set) = inner_functions(buffer).set_tensor {
                set(buffer, tensor, data, offset, size);
            }
            return;
        };
        // The declared bytes mean nothing: the first of them are the sign to fill the operands.
        if offset == 0 {
            for index in &live.owned {
                device.fill(*index, live.operand(*index));
            }
        }
    }
}

fn inner_functions(buffer: sys::ggml_backend_buffer_t) -> ggml_backend_buffer_i {
    // SAFETY: the functions of this file that call it are those of buffers of weights.
    let device = unsafe { device_of(buffer) };
    device.buffers()[&(buffer as usize)].inner
}
