//! Lays out a model's weights in a buffer: whole weights, and the operands of the others, each
//! once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_char;
use std::ptr::null_mut;
use std::sync::atomic::Ordering;

use llama_cpp_sys_2 as sys;
use sys::ggml_tensor;

use super::internals::{ggml_backend_buffer, ggml_backend_buffer_i};
use super::live::{Live, WeightBuffer};
use super::weights::Operand;
use super::wrapped::{Device, lock, name_of, tensor};

/// What llama.cpp's names of stacks of experts hold.
const EXPERTS: &str = "_exps";

/// Where things are in a buffer of weights.
pub(super) struct Layout {
    pub size: usize,
    /// Of each tensor that is in memory itself.
    dense: HashMap<usize, usize>,
    /// Of each operand; `None` where the inner device needs it in another kind of buffer.
    operands: HashMap<usize, Option<usize>>,
}

impl Layout {
    /// # Safety
    /// The tensors are valid.
    pub unsafe fn of(device: &Device, list: &[*mut ggml_tensor]) -> Layout {
        let mut layout = Layout {
            size: 0,
            dense: HashMap::new(),
            operands: HashMap::new(),
        };
        for (i, t) in list.iter().enumerate() {
            // SAFETY: the caller's tensors are valid.
            let (is_view, name) = unsafe { (!(**t).view_src.is_null(), name_of(*t)) };
            if is_view {
                continue;
            }
            let Some(contraction) = device.weights.contractions.get(&*name) else {
                layout.dense.insert(i, layout.size);
                layout.take(device, *t);
                continue;
            };
            for index in contraction.operands() {
                if layout.operands.contains_key(&index) {
                    continue;
                }
                let mut operand = blank(&device.weights.operands[index]);
                // Kernels that multiply by it may lay it out; those that look rows up may not. And
                // a stack is laid out for products with chosen experts alone.
                let table = contraction.rows.is_some();
                let stacked = operand.ne[2] > 1 && !name.contains(EXPERTS);
                let elsewhere = !table && !stacked && device.special_type(&operand).is_some();
                let offset = (!elsewhere).then_some(layout.size);
                layout.operands.insert(index, offset);
                if !elsewhere {
                    layout.take(device, &mut operand);
                }
            }
        }
        layout
    }

    fn take(&mut self, device: &Device, tensor: *mut ggml_tensor) {
        // SAFETY: the callers' tensors are valid, and the type is one of ggml's.
        let (bytes, alignment) = unsafe {
            (
                sys::ggml_backend_buft_get_alloc_size(device.inner_type, tensor),
                sys::ggml_backend_buft_get_alignment(device.inner_type),
            )
        };
        self.size += bytes.next_multiple_of(alignment);
    }
}

/// A tensor that describes an operand, without data.
fn blank(operand: &Operand) -> ggml_tensor {
    let mut ne = [1; 4];
    for (to, from) in ne.iter_mut().zip(&operand.shape) {
        *to = *from as i64;
    }
    let mut t = tensor(operand.ty.id(), ne);
    let room = t.name.len() - 1;
    for (to, from) in t.name[..room].iter_mut().zip(operand.name.bytes()) {
        *to = from as c_char;
    }
    t
}

/// Gives every tensor its place; `false` where memory ran out.
///
/// # Safety
/// The first buffer is one of weights and the second its inner one, as large as the layout says; the tensors
/// are valid.
pub(super) unsafe fn place(
    device: &Device,
    [buffer, inner]: [sys::ggml_backend_buffer_t; 2],
    list: &[*mut ggml_tensor],
    layout: &Layout,
) -> bool {
    let mut buffers = device.buffers();
    let Some(weights) = buffers.get_mut(&(buffer as usize)) else {
        return false;
    };
    // SAFETY: the buffer was just allocated with the layout's size; the tensors are valid.
    unsafe {
        let base = sys::ggml_backend_buffer_get_base(inner).cast::<u8>();
        let mut placed: HashMap<usize, *mut ggml_tensor> = HashMap::new();
        for (i, t) in list.iter().enumerate() {
            if !(**t).view_src.is_null() {
                sys::ggml_backend_view_init(*t);
                continue;
            }
            let Some(contraction) = device.weights.contractions.get(&*name_of(*t)) else {
                let at = base.add(layout.dense[&i]).cast();
                if sys::ggml_backend_tensor_alloc(inner, *t, at) != sys::GGML_STATUS_SUCCESS {
                    return false;
                }
                continue;
            };
            (**t).buffer = buffer.cast();
            (**t).data = base.cast();
            let mut live = Live {
                contraction: contraction.clone(),
                operands: HashMap::new(),
                owned: Vec::new(),
            };
            for index in contraction.operands() {
                let operand = match placed.entry(index) {
                    Entry::Occupied(there) => *there.get(),
                    Entry::Vacant(free) => {
                        let at = layout.operands[&index].map(|offset| base.add(offset));
                        let Some(made) = allocate(device, inner, weights, index, at) else {
                            return false;
                        };
                        live.owned.push(index);
                        // A type that the inner device has no products with.
                        if !device.multiplies(&*made) {
                            lock(&device.used_whole).insert(name_of(*t).into_owned());
                        }
                        *free.insert(made)
                    }
                };
                live.operands.insert(index, operand);
            }
            let mut live = Box::new(live);
            (**t).extra = std::ptr::from_mut(&mut *live).cast();
            weights.lives.push(live);
        }
    }
    true
}

/// The tensor of an operand: in the buffer, or where the inner device needs it.
unsafe fn allocate(
    device: &Device,
    inner: sys::ggml_backend_buffer_t,
    weights: &mut WeightBuffer,
    index: usize,
    at: Option<*mut u8>,
) -> Option<*mut ggml_tensor> {
    let operand = Box::into_raw(Box::new(blank(&device.weights.operands[index])));
    weights.operands.push((index, operand));
    // SAFETY: the operand is valid, its place is in the buffer, and the type is one of ggml's.
    unsafe {
        if let Some(at) = at {
            let placed = sys::ggml_backend_tensor_alloc(inner, operand, at.cast());
            return (placed == sys::GGML_STATUS_SUCCESS).then_some(operand);
        }
        let ty = device.special_type(&*operand)?;
        let size = sys::ggml_backend_buft_get_alloc_size(ty, operand);
        let special = sys::ggml_backend_buft_alloc_buffer(ty, size);
        if special.is_null() {
            return None;
        }
        weights.buffers.push(special);
        device.elsewhere.fetch_add(size, Ordering::Relaxed);
        sys::ggml_backend_buffer_set_usage(special, sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        let base = sys::ggml_backend_buffer_get_base(special);
        let placed = sys::ggml_backend_tensor_alloc(special, operand, base);
        (placed == sys::GGML_STATUS_SUCCESS).then_some(operand)
    }
}

impl Device {
    /// A buffer type of the inner device in which it computes products with an operand faster.
    fn special_type(&self, operand: &ggml_tensor) -> Option<sys::ggml_backend_buffer_type_t> {
        let mut types = self.special_types.iter().copied();
        types.find(|ty| self.multiplies_in(operand, *ty))
    }

    /// Whether the inner device has products with an operand; plain scales are none's concern.
    fn multiplies(&self, operand: &ggml_tensor) -> bool {
        let [_, m, ..] = operand.ne;
        m == 1
            || operand.type_ == sys::GGML_TYPE_F32
            || self.multiplies_in(operand, self.inner_type)
    }

    fn multiplies_in(&self, operand: &ggml_tensor, ty: sys::ggml_backend_buffer_type_t) -> bool {
        let mut operand = *operand;
        let [k, m, stack, _] = operand.ne;
        let mut input = tensor(sys::GGML_TYPE_F32, [k, 512, 1, 1]);
        let mut ids = tensor(sys::GGML_TYPE_I32, [1, 512, 1, 1]);
        let mut product = tensor(sys::GGML_TYPE_F32, [m, 512, 1, 1]);
        product.op = sys::GGML_OP_MUL_MAT;
        if stack > 1 {
            product.op = sys::GGML_OP_MUL_MAT_ID;
            input.ne = [k, 1, 512, 1];
            product.ne = [m, 1, 512, 1];
            product.src[2] = &mut ids;
        }
        let mut dummy = ggml_backend_buffer {
            iface: EMPTY,
            buft: ty,
            context: null_mut(),
            size: 0,
            usage: sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS,
        };
        operand.buffer = std::ptr::from_mut(&mut dummy).cast();
        product.src[0] = &mut operand;
        product.src[1] = &mut input;
        // SAFETY: the node and its sources are valid during the call, and only described.
        unsafe { sys::ggml_backend_dev_supports_op(self.inner, &product) }
    }
}

const EMPTY: ggml_backend_buffer_i = ggml_backend_buffer_i {
    free_buffer: None,
    get_base: None,
    init_tensor: None,
    memset_tensor: None,
    set_tensor: None,
    get_tensor: None,
    set_tensor_2d: None,
    get_tensor_2d: None,
    cpy_tensor: None,
    clear: None,
    reset: None,
};
