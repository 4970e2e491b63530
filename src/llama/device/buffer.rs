//! Buffer types: what llama.cpp allocates on the device. All of it lies in the inner device's own buffers,
//! untouched: some devices know their buffers by their functions. A contracted weight takes the room of its
//! operands alone, and says that it lies in a buffer of ours, which is not host memory for llama.cpp, so that
//! its bytes are handed over instead of read into place.

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
        let inner = sys::ggml_backend_buft_alloc_buffer(device.inner_type, layout.size.max(1));
        if inner.is_null() {
            return null_mut();
        }
        sys::ggml_backend_buffer_set_usage(inner, sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        let buffer = ggml_backend_buffer_init(buft, BUFFER, inner.cast(), layout.size.max(1));
        (*buffer.cast::<ggml_backend_buffer>()).buft = device.weights_type();
        device
            .buffers()
            .insert(buffer as usize, WeightBuffer::default());
        if place(device, [buffer, inner], list, &layout) {
            return buffer;
        }
        sys::ggml_backend_buffer_free(buffer);
        null_mut()
    }
}

/// The functions of a buffer of weights, whose context is the inner device's buffer.
const BUFFER: ggml_backend_buffer_i = ggml_backend_buffer_i {
    free_buffer: Some(free_buffer),
    get_base: Some(get_base),
    init_tensor: None,
    memset_tensor: None,
    set_tensor: Some(set_tensor),
    get_tensor: Some(get_tensor),
    set_tensor_2d: None,
    get_tensor_2d: None,
    cpy_tensor: None,
    clear: Some(clear),
    reset: None,
};

unsafe extern "C" {
    /// As ggml-backend-impl.h declares it: ggml frees what it gives.
    fn ggml_backend_buffer_init(
        buft: sys::ggml_backend_buffer_type_t,
        iface: ggml_backend_buffer_i,
        context: *mut c_void,
        size: usize,
    ) -> sys::ggml_backend_buffer_t;
}

/// The device of a buffer of weights.
unsafe fn device_of<'a>(buffer: sys::ggml_backend_buffer_t) -> &'a Device {
    // SAFETY: `alloc_buffer_n` has given the buffer the device's type for weights.
    unsafe { device((*buffer.cast::<ggml_backend_buffer>()).buft) }
}

/// The inner device's buffer.
unsafe fn inner(buffer: sys::ggml_backend_buffer_t) -> sys::ggml_backend_buffer_t {
    // SAFETY: `alloc_buffer_n` has made it the context.
    unsafe { (*buffer.cast::<ggml_backend_buffer>()).context.cast() }
}

unsafe extern "C" fn free_buffer(buffer: sys::ggml_backend_buffer_t) {
    let _called = CalledBack::begin();
    // SAFETY: ggml frees a buffer once, and the inner one belongs to it.
    unsafe {
        drop(device_of(buffer).buffers().remove(&(buffer as usize)));
        sys::ggml_backend_buffer_free(inner(buffer));
    }
}

unsafe extern "C" fn get_base(buffer: sys::ggml_backend_buffer_t) -> *mut c_void {
    // SAFETY: as `inner` says.
    unsafe { sys::ggml_backend_buffer_get_base(inner(buffer)) }
}

unsafe extern "C" fn clear(buffer: sys::ggml_backend_buffer_t, value: u8) {
    let _called = CalledBack::begin();
    // SAFETY: as `inner` says.
    unsafe { sys::ggml_backend_buffer_clear(inner(buffer), value) };
}

unsafe extern "C" fn set_tensor(
    buffer: sys::ggml_backend_buffer_t,
    tensor: *mut ggml_tensor,
    _: *const c_void,
    offset: usize,
    _: usize,
) {
    let _called = CalledBack::begin();
    // SAFETY: the buffer is one of weights, and the tensor lies in it.
    unsafe {
        let device = device_of(buffer);
        // The declared bytes mean nothing: the first of them are the sign to fill the operands.
        if let Some(live) = live(device, tensor).filter(|_| offset == 0) {
            for index in &live.owned {
                device.fill(*index, live.operand(*index));
            }
        }
    }
}

/// A contracted weight has no bytes; whoever wants them gets zeros.
unsafe extern "C" fn get_tensor(
    _: sys::ggml_backend_buffer_t,
    _: *const ggml_tensor,
    data: *mut c_void,
    _: usize,
    size: usize,
) {
    // SAFETY: ggml passes a place for as many bytes.
    unsafe { data.cast::<u8>().write_bytes(0, size) };
}
