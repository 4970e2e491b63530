//! Contracted weights where they live: in a buffer, each with its operands.

use std::collections::HashMap;

use llama_cpp_sys_2 as sys;
use sys::ggml_tensor;

use super::weights::{Contraction, Link};

/// A contracted weight in a buffer: what `extra` of its tensor points to.
pub(super) struct Live {
    pub contraction: Contraction,
    pub operands: HashMap<usize, *mut ggml_tensor>,
    /// Those that are filled when this weight is.
    pub owned: Vec<usize>,
}

impl Live {
    /// The tensor of an operand of this weight.
    pub fn operand(&self, index: usize) -> *mut ggml_tensor {
        self.operands[&index]
    }

    /// Whether a product that is not with chosen experts can have this input: scales of a stack
    /// belong to as many matrices.
    unsafe fn multiplies(&self, input: *const ggml_tensor) -> bool {
        let links = self.contraction.branches.iter().flatten();
        let mut scales = links.filter_map(|link| match link {
            Link::Scale(operand) => Some(self.operand(*operand)),
            _ => None,
        });
        // SAFETY: the operands and the caller's input are valid.
        let fits = scales.all(|s| unsafe { (*s).ne[1] == 1 || (*s).ne[1] == (*input).ne[2] });
        fits && !self.contraction.branches.is_empty()
    }

    /// Whether a node uses the weight, its source of this number, as it can be used.
    ///
    /// # Safety
    /// The node and its sources are valid tensors.
    pub unsafe fn serves(&self, node: *const ggml_tensor, source: usize) -> bool {
        // SAFETY: valid by contract.
        let (op, view) = unsafe { ((*node).op, !(*(*node).src[source]).view_src.is_null()) };
        let used = match op {
            sys::GGML_OP_MUL_MAT_ID => !self.contraction.branches.is_empty(),
            // SAFETY: a product has two sources.
            sys::GGML_OP_MUL_MAT => unsafe { self.multiplies((*node).src[1]) },
            sys::GGML_OP_GET_ROWS => self.contraction.rows.is_some(),
            _ => false,
        };
        used && source == 0 && !view
    }
}

/// What belongs to a buffer of weights.
#[derive(Default)]
pub(super) struct WeightBuffer {
    /// Boxed, as tensors point to them.
    #[allow(clippy::vec_box)]
    pub lives: Vec<Box<Live>>,
    pub operands: Vec<(usize, *mut ggml_tensor)>,
    /// Of operands that the inner device wants elsewhere, in a layout of its kernels.
    pub buffers: Vec<sys::ggml_backend_buffer_t>,
}

// SAFETY: a buffer belongs to a model, whose loading and freeing happen on one thread at a time.
unsafe impl Send for WeightBuffer {}

impl Drop for WeightBuffer {
    fn drop(&mut self) {
        for buffer in self.buffers.drain(..) {
            // SAFETY: allocated for this buffer, and freed once.
            unsafe { sys::ggml_backend_buffer_free(buffer) };
        }
        for (_, operand) in self.operands.drain(..) {
            // SAFETY: each came from a box, and the model that used it is gone.
            drop(unsafe { Box::from_raw(operand) });
        }
    }
}
