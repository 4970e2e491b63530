//! A ggml device of dwindle's own: it wraps one of llama.cpp's (the CPU, a GPU), takes the place of
//! a model's weights with operands that stand for them, and lets the inner device compute with
//! those. llama.cpp itself is unchanged and sees a device like any other.

mod backend;
mod buffer;
mod graph;
#[allow(unused_qualifications)]
mod internals;
mod layout;
mod live;
pub mod weights;
mod wrapped;

use std::collections::HashSet;
use std::ffi::{CString, c_char};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use llama_cpp_sys_2 as sys;
use sys::ggml_tensor;

use self::internals::{
    ggml_backend_buffer_type, ggml_backend_device, ggml_backend_reg, ggml_backend_reg_i,
};
use self::weights::{Fetch, Weights};
use self::wrapped::{Device, Shared, lock};
use super::backend::describe;
use super::error::BoxError;

/// The devices of one model, which must outlive it.
pub(super) struct Devices {
    shared: Arc<Shared>,
    /// From boxes: ggml knows their addresses.
    devices: Vec<*mut Device>,
}

// SAFETY: what changes in a device lies behind locks; the rest is set before it is shared.
unsafe impl Send for Devices {}
// SAFETY: as above.
unsafe impl Sync for Devices {}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Devices")
            .field("devices", &self.devices.len())
            .finish_non_exhaustive()
    }
}

impl Devices {
    /// Wraps devices of ggml's registry, of which the last is the CPU. `names` are all weights of
    /// the model, `fetch` makes the operands while it loads.
    pub fn new(
        inner: &[sys::ggml_backend_dev_t],
        weights: Weights,
        names: HashSet<String>,
        fetch: Fetch,
    ) -> Devices {
        let shared = Arc::new(Shared {
            weights,
            names,
            fetch: Mutex::new(Some(fetch)),
            error: Mutex::new(None),
            used_whole: Mutex::default(),
            elsewhere: AtomicUsize::new(0),
        });
        let devices: Vec<*mut Device> = inner
            .iter()
            .map(|inner| Device::new(*inner, &shared))
            .collect();
        if let Some(last) = devices.last() {
            for device in &devices {
                // SAFETY: just made, and not yet known to anyone else.
                unsafe { (**device).host = (**last).general_type() };
            }
        }
        Devices { shared, devices }
    }

    /// What llama.cpp is given.
    pub fn raw(&self) -> impl Iterator<Item = sys::ggml_backend_dev_t> + '_ {
        // SAFETY: the devices live as long as this.
        self.devices
            .iter()
            .map(|d| unsafe { (&raw mut (**d).raw).cast() })
    }

    /// How llama.cpp shall split layers: as asked, or else by free memory among the GPUs, with none for the
    /// CPU behind them.
    pub fn shares(&self, asked: &[f32]) -> Vec<f32> {
        let gpus = self.devices.len().saturating_sub(1).max(1);
        let free = |device: &*mut Device| {
            // SAFETY: the devices live as long as this, and their inner ones in the registry.
            let inner = unsafe { (**device).inner };
            describe(inner).memory_free.max(1) as f32
        };
        match asked {
            [] => self.devices.iter().take(gpus).map(free).collect(),
            asked => asked.to_vec(),
        }
    }

    /// Ends loading: what fetching an operand went wrong with, if it did.
    pub fn loaded(&self) -> Option<BoxError> {
        lock(&self.shared.fetch).take();
        lock(&self.shared.error).take()
    }

    /// The tensors of an operand of this name, one for each buffer that has it.
    pub fn operands(&self, name: &str) -> Vec<*mut ggml_tensor> {
        // SAFETY: the devices live as long as this.
        let all = self.devices.iter().map(|d| unsafe { &**d });
        all.flat_map(|device| device.operands(name)).collect()
    }

    /// Whether a weight is computed with operands.
    pub fn contracts(&self, weight: &str) -> bool {
        self.shared.weights.contractions.contains_key(weight)
    }

    /// Bytes that the weights take beside what llama.cpp has allocated.
    pub fn elsewhere(&self) -> u64 {
        self.shared.elsewhere.load(Ordering::Relaxed) as u64
    }

    /// Contracted weights that a graph has used in a way that needs the whole matrix.
    pub fn used_whole(&self) -> Vec<String> {
        lock(&self.shared.used_whole).iter().cloned().collect()
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        for device in self.devices.drain(..) {
            // SAFETY: each came from a box, and the model that knew its address is gone.
            drop(unsafe { Box::from_raw(device) });
        }
    }
}

impl Device {
    fn new(inner: sys::ggml_backend_dev_t, shared: &Arc<Shared>) -> *mut Device {
        let name = format!("dwindle-{}", describe(inner).name);
        let text = |name: String| CString::new(name).unwrap_or_default();
        // SAFETY: the inner device is one of the registry.
        let inner_type = unsafe { sys::ggml_backend_dev_buffer_type(inner) };
        let buffer_type = || ggml_backend_buffer_type {
            iface: buffer::TYPE,
            device: null_mut(),
            context: null_mut(),
        };
        let device = Box::into_raw(Box::new(Device {
            shared: shared.clone(),
            raw: ggml_backend_device {
                iface: backend::DEVICE,
                reg: null_mut(),
                context: null_mut(),
            },
            reg: ggml_backend_reg {
                api_version: internals::GGML_BACKEND_API_VERSION as i32,
                iface: REGISTRY,
                context: null_mut(),
            },
            general: buffer_type(),
            for_weights: buffer_type(),
            weights_name: text(format!("{name}-weights")),
            name: text(name),
            inner,
            inner_type,
            special_types: special_types(inner),
            host: null_mut(),
            buffers: Mutex::default(),
        }));
        // SAFETY: just made; from here on it stays at its address.
        unsafe {
            let raw: sys::ggml_backend_dev_t = (&raw mut (*device).raw).cast();
            (*device).raw.context = device.cast();
            (*device).raw.reg = (&raw mut (*device).reg).cast();
            (*device).reg.context = device.cast();
            for ty in [&raw mut (*device).general, &raw mut (*device).for_weights] {
                (*ty).device = raw;
                (*ty).context = device.cast();
            }
        }
        device
    }
}

/// Buffer types of a device in which it holds weights in layouts of its kernels.
fn special_types(inner: sys::ggml_backend_dev_t) -> Vec<sys::ggml_backend_buffer_type_t> {
    let name = c"ggml_backend_dev_get_extra_bufts";
    let mut types = Vec::new();
    // SAFETY: a function of this name has this type by ggml's contract, and its list ends with
    // null.
    unsafe {
        let reg = sys::ggml_backend_dev_backend_reg(inner);
        let found = sys::ggml_backend_reg_get_proc_address(reg, name.as_ptr());
        let list: sys::ggml_backend_dev_get_extra_bufts_t = std::mem::transmute(found);
        let mut next = list.map_or(null_mut(), |list| list(inner));
        while !next.is_null() && !(*next).is_null() {
            types.push(*next);
            next = next.add(1);
        }
    }
    types
}

/// A registry of one device.
const REGISTRY: ggml_backend_reg_i = ggml_backend_reg_i {
    get_name: Some(reg_name),
    get_device_count: Some(one),
    get_device: Some(only),
    get_proc_address: Some(backend::function),
};

unsafe extern "C" fn reg_name(_: sys::ggml_backend_reg_t) -> *const c_char {
    c"dwindle".as_ptr()
}

unsafe extern "C" fn one(_: sys::ggml_backend_reg_t) -> usize {
    1
}

unsafe extern "C" fn only(reg: sys::ggml_backend_reg_t, _: usize) -> sys::ggml_backend_dev_t {
    // SAFETY: the registry is that of a device, which is its context.
    unsafe {
        let device = (*reg.cast::<ggml_backend_reg>()).context.cast::<Device>();
        (&raw mut (*device).raw).cast()
    }
}
