//! The device as ggml asks it, and its streams: everything is passed on to the inner device, but
//! graphs, which are rewritten on the way.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

use llama_cpp_sys_2 as sys;
use sys::ggml_tensor;

use super::graph::{Rewriter, Scratch};
use super::internals::{
    ggml_backend, ggml_backend_device, ggml_backend_device_i, ggml_backend_i, ggml_cgraph,
};
use super::live::Live;
use super::wrapped::{Device, live, lock, name_of};
use crate::llama::guard::CalledBack;

/// The functions of a device.
pub(super) const DEVICE: ggml_backend_device_i = ggml_backend_device_i {
    get_name: Some(get_name),
    get_description: Some(get_description),
    get_memory: Some(get_memory),
    get_type: Some(get_type),
    get_props: Some(get_props),
    init_backend: Some(init_backend),
    get_buffer_type: Some(get_buffer_type),
    get_host_buffer_type: Some(get_host_buffer_type),
    buffer_from_host_ptr: None,
    supports_op: Some(supports_op),
    supports_buft: Some(supports_buft),
    offload_op: Some(offload_op),
    event_new: None,
    event_free: None,
    event_synchronize: None,
};

unsafe fn device<'a>(dev: sys::ggml_backend_dev_t) -> &'a Device {
    // SAFETY: the functions of this file are those of devices that only `Device` makes; it is
    // their context and outlives their use.
    unsafe {
        &*(*dev.cast::<ggml_backend_device>())
            .context
            .cast::<Device>()
    }
}

unsafe extern "C" fn get_name(dev: sys::ggml_backend_dev_t) -> *const c_char {
    // SAFETY: as `device` says; so in all functions below.
    unsafe { device(dev).name.as_ptr() }
}

unsafe extern "C" fn get_description(dev: sys::ggml_backend_dev_t) -> *const c_char {
    // SAFETY: the inner device is one of the registry; so in all functions below.
    unsafe { sys::ggml_backend_dev_description(device(dev).inner) }
}

unsafe extern "C" fn get_memory(dev: sys::ggml_backend_dev_t, free: *mut usize, total: *mut usize) {
    // SAFETY: as above; the caller's pointers are passed on.
    unsafe { sys::ggml_backend_dev_memory(device(dev).inner, free, total) }
}

/// A GPU whatever is inside: only such devices are given layers.
unsafe extern "C" fn get_type(_: sys::ggml_backend_dev_t) -> sys::ggml_backend_dev_type {
    sys::GGML_BACKEND_DEVICE_TYPE_GPU
}

unsafe extern "C" fn get_props(
    dev: sys::ggml_backend_dev_t,
    props: *mut sys::ggml_backend_dev_props,
) {
    // SAFETY: as above; the caller's pointer is valid.
    unsafe {
        sys::ggml_backend_dev_get_props(device(dev).inner, props);
        let props = &mut *props;
        props.name = device(dev).name.as_ptr();
        props.type_ = sys::GGML_BACKEND_DEVICE_TYPE_GPU;
        props.device_id = std::ptr::null();
        props.caps.buffer_from_host_ptr = false;
        props.caps.events = false;
    }
}

unsafe extern "C" fn get_buffer_type(
    dev: sys::ggml_backend_dev_t,
) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: as above.
    unsafe { device(dev).general_type() }
}

/// llama.cpp keeps token embeddings in main memory; ours must be on a device of ours too.
unsafe extern "C" fn get_host_buffer_type(
    dev: sys::ggml_backend_dev_t,
) -> sys::ggml_backend_buffer_type_t {
    // SAFETY: as above.
    unsafe { device(dev).host }
}

unsafe extern "C" fn supports_op(dev: sys::ggml_backend_dev_t, op: *const ggml_tensor) -> bool {
    let _called = CalledBack::begin();
    // SAFETY: ggml passes a valid node.
    unsafe {
        let device = device(dev);
        if contracted(device, op).is_some() {
            return true;
        }
        sys::ggml_backend_dev_supports_op(device.inner, op)
    }
}

unsafe extern "C" fn supports_buft(
    dev: sys::ggml_backend_dev_t,
    buft: sys::ggml_backend_buffer_type_t,
) -> bool {
    // SAFETY: as above.
    unsafe {
        let device = device(dev);
        buft == device.general_type()
            || device.is_weights(buft)
            || sys::ggml_backend_dev_supports_buft(device.inner, buft)
    }
}

unsafe extern "C" fn offload_op(dev: sys::ggml_backend_dev_t, op: *const ggml_tensor) -> bool {
    // SAFETY: as above.
    unsafe { sys::ggml_backend_dev_offload_op(device(dev).inner, op) }
}

/// The contracted weight among a node's sources; `Some(Err)` for one that is used as it can't be,
/// which is also written down.
unsafe fn contracted(device: &Device, node: *const ggml_tensor) -> Option<Result<&Live, ()>> {
    // SAFETY: the caller's node is valid.
    unsafe {
        let only_shape = matches!(
            (*node).op,
            sys::GGML_OP_NONE
                | sys::GGML_OP_VIEW
                | sys::GGML_OP_RESHAPE
                | sys::GGML_OP_PERMUTE
                | sys::GGML_OP_TRANSPOSE
        );
        if only_shape {
            return None;
        }
        for (i, source) in (*node).src.iter().enumerate() {
            let Some(live) = live(device, *source) else {
                continue;
            };
            if live.serves(node, i) {
                return Some(Ok(live));
            }
            let view_src = (**source).view_src;
            let root = if view_src.is_null() {
                *source
            } else {
                view_src
            };
            lock(&device.used_whole).insert(name_of(root).into_owned());
            return Some(Err(()));
        }
        None
    }
}

/// A stream of the device.
struct Stream {
    device: *const Device,
    inner: sys::ggml_backend_t,
    rewriter: Rewriter,
    scratch: Scratch,
    scratch_len: usize,
}

impl Stream {
    /// Makes room for the intermediate results of the longest chain.
    unsafe fn reserve(&mut self, len: usize) -> bool {
        // SAFETY: the inner stream is done with the old memory before it is freed.
        unsafe {
            sys::ggml_backend_synchronize(self.inner);
            if !self.scratch.buffer.is_null() {
                sys::ggml_backend_buffer_free(self.scratch.buffer);
            }
            let ty = (*self.device).inner_type;
            let buffer = sys::ggml_backend_buft_alloc_buffer(ty, len);
            (self.scratch, self.scratch_len) = (Scratch::default(), 0);
            if buffer.is_null() {
                return false;
            }
            let base = sys::ggml_backend_buffer_get_base(buffer).cast();
            self.scratch = Scratch { buffer, base };
            self.scratch_len = len;
        }
        true
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: owned, and freed once.
        unsafe {
            if !self.scratch.buffer.is_null() {
                sys::ggml_backend_buffer_free(self.scratch.buffer);
            }
            sys::ggml_backend_free(self.inner);
        }
    }
}

unsafe extern "C" fn init_backend(
    dev: sys::ggml_backend_dev_t,
    params: *const c_char,
) -> sys::ggml_backend_t {
    let _called = CalledBack::begin();
    // SAFETY: as above; the functions are given to the stream only where the inner one has them.
    unsafe {
        let device = device(dev);
        let inner = sys::ggml_backend_dev_init(device.inner, params);
        if inner.is_null() {
            return null_mut();
        }
        let has = (*inner.cast::<ggml_backend>()).iface;
        let stream = Box::new(Stream {
            device,
            inner,
            rewriter: Rewriter::default(),
            scratch: Scratch::default(),
            scratch_len: 0,
        });
        let backend = Box::new(ggml_backend {
            guid: (&raw const GUID).cast_mut().cast(),
            iface: ggml_backend_i {
                get_name: Some(stream_name),
                free: Some(free),
                synchronize: has.synchronize.map(|_| synchronize as _),
                graph_compute: Some(graph_compute),
                ..NOTHING
            },
            device: dev,
            context: Box::into_raw(stream).cast(),
        });
        Box::into_raw(backend).cast()
    }
}

const NOTHING: ggml_backend_i = ggml_backend_i {
    get_name: None,
    free: None,
    set_tensor_async: None,
    get_tensor_async: None,
    set_tensor_2d_async: None,
    get_tensor_2d_async: None,
    cpy_tensor_async: None,
    synchronize: None,
    graph_plan_create: None,
    graph_plan_free: None,
    graph_plan_update: None,
    graph_plan_compute: None,
    graph_compute: None,
    event_record: None,
    event_wait: None,
    graph_optimize: None,
};

/// What distinguishes this kind of stream from others.
static GUID: [u8; 16] = *b"dwindle contract";

unsafe fn stream<'a>(backend: sys::ggml_backend_t) -> &'a mut Stream {
    // SAFETY: the context of a stream that `init_backend` has made; ggml uses it on one thread at
    // a time.
    unsafe { &mut *(*backend.cast::<ggml_backend>()).context.cast::<Stream>() }
}

unsafe extern "C" fn stream_name(backend: sys::ggml_backend_t) -> *const c_char {
    // SAFETY: as `stream` says; so in all functions below.
    unsafe { (*stream(backend).device).name.as_ptr() }
}

unsafe extern "C" fn free(backend: sys::ggml_backend_t) {
    let _called = CalledBack::begin();
    // SAFETY: both came from boxes; ggml frees a stream once.
    unsafe {
        drop(Box::from_raw(stream(backend)));
        drop(Box::from_raw(backend.cast::<ggml_backend>()));
    }
}

unsafe extern "C" fn synchronize(backend: sys::ggml_backend_t) {
    let _called = CalledBack::begin();
    // SAFETY: as above.
    unsafe { sys::ggml_backend_synchronize(stream(backend).inner) }
}

unsafe extern "C" fn graph_compute(
    backend: sys::ggml_backend_t,
    graph: *mut ggml_cgraph,
) -> sys::ggml_status {
    let _called = CalledBack::begin();
    // SAFETY: ggml passes a valid graph; the rewritten one lives until the next.
    unsafe {
        let stream = stream(backend);
        if !rewrite(stream, graph) {
            return sys::GGML_STATUS_FAILED;
        }
        let needed = stream.rewriter.needed;
        if needed > stream.scratch_len {
            if !stream.reserve(needed) {
                return sys::GGML_STATUS_ALLOC_FAILED;
            }
            rewrite(stream, graph);
        }
        let mut rewritten = std::ptr::read(graph);
        rewritten.nodes = stream.rewriter.nodes.as_mut_ptr();
        rewritten.n_nodes = stream.rewriter.nodes.len() as i32;
        rewritten.size = rewritten.n_nodes;
        // Another graph than the one with this number.
        rewritten.uid = 0;
        sys::ggml_backend_graph_compute_async(stream.inner, (&raw mut rewritten).cast())
    }
}

/// `false` where a contracted weight is used as it can't be.
unsafe fn rewrite(stream: &mut Stream, graph: *const ggml_cgraph) -> bool {
    stream.rewriter.begin(stream.scratch);
    // SAFETY: the graph is valid and has as many nodes; the device outlives its streams.
    unsafe {
        let nodes = std::slice::from_raw_parts((*graph).nodes, (*graph).n_nodes as usize);
        for node in nodes {
            // Of a batch that needs no logits, or of a branch that was not taken: nobody computes
            // it.
            let computed = (**node).flags & sys::GGML_TENSOR_FLAG_COMPUTE as i32 != 0;
            if !computed || sys::ggml_is_empty(*node) {
                stream.rewriter.nodes.push(*node);
                continue;
            }
            match contracted(&*stream.device, *node) {
                None => stream.rewriter.nodes.push(*node),
                Some(Ok(live)) => stream.rewriter.contract(*node, live),
                Some(Err(())) => return false,
            }
        }
    }
    true
}

/// Functions that llama.cpp asks a registry for by their names.
pub(super) unsafe extern "C" fn function(
    _: sys::ggml_backend_reg_t,
    name: *const c_char,
) -> *mut c_void {
    // SAFETY: ggml passes a C string.
    let name = unsafe { std::ffi::CStr::from_ptr(name) };
    match name.to_bytes() {
        b"ggml_backend_set_n_threads" => set_n_threads as *mut c_void,
        b"ggml_backend_set_abort_callback" => set_abort_callback as *mut c_void,
        _ => null_mut(),
    }
}

/// A function of the inner device's registry, by its name.
unsafe fn inner_function(stream: &Stream, name: &std::ffi::CStr) -> *mut c_void {
    // SAFETY: the inner device is one of the registry.
    unsafe {
        let reg = sys::ggml_backend_dev_backend_reg((*stream.device).inner);
        sys::ggml_backend_reg_get_proc_address(reg, name.as_ptr())
    }
}

unsafe extern "C" fn set_n_threads(backend: sys::ggml_backend_t, threads: i32) {
    // SAFETY: a function of this name has this type by ggml's contract.
    unsafe {
        let stream = stream(backend);
        let found = inner_function(stream, c"ggml_backend_set_n_threads");
        let set: sys::ggml_backend_set_n_threads_t = std::mem::transmute(found);
        if let Some(set) = set {
            set(stream.inner, threads);
        }
    }
}

unsafe extern "C" fn set_abort_callback(
    backend: sys::ggml_backend_t,
    callback: sys::ggml_abort_callback,
    data: *mut c_void,
) {
    // SAFETY: as in `set_n_threads`.
    unsafe {
        let stream = stream(backend);
        let found = inner_function(stream, c"ggml_backend_set_abort_callback");
        let set: sys::ggml_backend_set_abort_callback_t = std::mem::transmute(found);
        if let Some(set) = set {
            set(stream.inner, callback, data);
        }
    }
}
