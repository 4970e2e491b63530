//! The devices on which llama.cpp computes.

use std::ffi::{CStr, c_char};

use llama_cpp_2::LlamaBackendDeviceType;
use llama_cpp_sys_2 as sys;

pub use super::start::init;

/// A device that llama.cpp can run models on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Device {
    /// llama.cpp's name (`CUDA0`, `CPU`).
    pub name: String,
    /// What the driver calls it.
    pub description: String,
    /// Whether layers can be offloaded to it.
    pub offload: bool,
    /// Bytes of memory, free.
    pub memory_free: u64,
    /// Bytes of memory, in total.
    pub memory_total: u64,
}

/// Every device that this build of llama.cpp sees.
pub fn devices() -> Vec<Device> {
    init();
    let all = llama_cpp_2::list_llama_ggml_backend_devices().into_iter();
    all.map(|d| Device {
        name: d.name,
        description: d.description,
        offload: matches!(
            d.device_type,
            LlamaBackendDeviceType::Gpu | LlamaBackendDeviceType::IntegratedGpu
        ),
        memory_free: d.memory_free as u64,
        memory_total: d.memory_total as u64,
    })
    .collect()
}

pub(super) fn raw_devices() -> impl Iterator<Item = sys::ggml_backend_dev_t> {
    init();
    // SAFETY: the registry is filled when llama.cpp is started and never shrinks.
    let count = unsafe { sys::ggml_backend_dev_count() };
    // SAFETY: the index is below the count.
    (0..count).map(|i| unsafe { sys::ggml_backend_dev_get(i) })
}

/// The devices that llama.cpp offloads layers to by itself: GPUs, integrated ones only where there are no
/// others.
pub(super) fn offloading() -> Vec<sys::ggml_backend_dev_t> {
    // SAFETY: the devices come from the registry and are never freed.
    let kind = |dev: &sys::ggml_backend_dev_t| unsafe { sys::ggml_backend_dev_type(*dev) };
    let of = |wanted| -> Vec<_> { raw_devices().filter(|dev| kind(dev) == wanted).collect() };
    let gpus = of(sys::GGML_BACKEND_DEVICE_TYPE_GPU);
    if gpus.is_empty() {
        return of(sys::GGML_BACKEND_DEVICE_TYPE_IGPU);
    }
    gpus
}

pub(super) fn describe(dev: sys::ggml_backend_dev_t) -> Device {
    let text = |p: *const c_char| {
        if p.is_null() {
            return String::new();
        }
        // SAFETY: device names are NUL-terminated and live as long as the device.
        unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned()
    };
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: `dev` comes from the registry and is never freed.
    let kind = unsafe {
        sys::ggml_backend_dev_memory(dev, &mut free, &mut total);
        sys::ggml_backend_dev_type(dev)
    };
    Device {
        // SAFETY: as above.
        name: text(unsafe { sys::ggml_backend_dev_name(dev) }),
        // SAFETY: as above.
        description: text(unsafe { sys::ggml_backend_dev_description(dev) }),
        offload: kind == sys::GGML_BACKEND_DEVICE_TYPE_GPU
            || kind == sys::GGML_BACKEND_DEVICE_TYPE_IGPU,
        memory_free: free as u64,
        memory_total: total as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_a_device() {
        assert!(devices().iter().any(|d| d.name == "CPU" && !d.offload));
    }
}
