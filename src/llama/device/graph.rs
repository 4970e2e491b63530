//! The graph as the inner backend computes it: each product with a weight that is not in memory
//! becomes the products with its operands. The last of them writes where the original would have,
//! so the nodes behind it see no difference.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};

use llama_cpp_sys_2 as sys;
use sys::ggml_tensor;

use super::live::Live;
use super::weights::Link;

/// Nodes that live as long as they may be computed: kept from graph to graph.
#[derive(Default)]
pub(super) struct Rewriter {
    made: Vec<NonNull<ggml_tensor>>,
    used: usize,
    /// The nodes of the rewritten graph, in order.
    pub nodes: Vec<*mut ggml_tensor>,
    /// Bytes of scratch memory that the largest chain needs.
    pub needed: usize,
    scratch: Scratch,
    at: usize,
    /// What the last input was multiplied with, and the results: weights that share a factor share
    /// its product. They lie in scratch memory before `kept`.
    shared: Products,
    kept: usize,
    /// What the node that is replaced asks of a product: its precision.
    parameters: [i32; 16],
}

/// Products of one input with first operands.
#[derive(Default)]
struct Products {
    input: Option<*mut ggml_tensor>,
    /// Operand, precision, result.
    results: Vec<(*mut ggml_tensor, [i32; 16], *mut ggml_tensor)>,
}

/// Where a node writes its result: over that of a node that it replaces, or in scratch memory.
type Target = Option<*mut ggml_tensor>;

/// Memory for intermediate results between the links of a chain.
#[derive(Clone, Copy)]
pub(super) struct Scratch {
    pub buffer: *mut sys::ggml_backend_buffer,
    pub base: *mut u8,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch {
            buffer: null_mut(),
            base: null_mut(),
        }
    }
}

/// How results are aligned in the scratch memory, in bytes: what the widest vectors need.
const ALIGNMENT: usize = 256;

impl Rewriter {
    /// Begins a graph.
    pub fn begin(&mut self, scratch: Scratch) {
        self.nodes.clear();
        (self.used, self.needed, self.scratch) = (0, 0, scratch);
        self.shared = Products::default();
    }

    /// Adds the nodes that stand for `node`, whose first source is the weight of `live`.
    ///
    /// # Safety
    /// The node and its sources are valid tensors, and so are the operands of `live`; the weight
    /// is used as [`Live::serves`] has found right.
    pub unsafe fn contract(&mut self, node: *mut ggml_tensor, live: &Live) {
        // SAFETY: the node is valid by contract.
        let (op, input) = unsafe {
            self.parameters = (*node).op_params;
            ((*node).op, (*node).src[1])
        };
        if self.shared.input != Some(input) {
            self.shared.results.clear();
            self.shared.input = Some(input);
            self.kept = 0;
        }
        self.at = self.kept;
        // SAFETY: as this function's contract says.
        unsafe {
            match live.contraction.rows {
                Some([table, back]) if op == sys::GGML_OP_GET_ROWS => {
                    self.look_up(node, live.operand(table), live.operand(back));
                }
                _ => self.branches(node, live),
            }
        }
        self.needed = self.needed.max(self.at);
    }

    /// W[:, ids] = Aᵀ·B[:, ids].
    unsafe fn look_up(
        &mut self,
        node: *mut ggml_tensor,
        table: *mut ggml_tensor,
        back: *mut ggml_tensor,
    ) {
        // SAFETY: the caller's tensors are valid, and so are those that are made here.
        unsafe {
            let ids = (*node).src[1];
            let ne = [(*table).ne[0], (*ids).ne[0], (*ids).ne[1], (*ids).ne[2]];
            let rows = self.node(sys::GGML_OP_GET_ROWS, ne, &[table, ids], None);
            self.node(sys::GGML_OP_MUL_MAT, (*node).ne, &[back, rows], Some(node));
        }
    }

    unsafe fn branches(&mut self, node: *mut ggml_tensor, live: &Live) {
        let branches = &live.contraction.branches;
        let mut sum: Option<*mut ggml_tensor> = None;
        for (i, links) in branches.iter().enumerate() {
            let last = i + 1 == branches.len();
            // SAFETY: as for `contract`.
            let result = unsafe { self.chain(node, live, links, last && sum.is_none()) };
            sum = Some(match sum {
                None => result,
                // SAFETY: both results are valid and of the node's size.
                Some(before) => unsafe {
                    let to = last.then_some(node);
                    let result = self.view(result, (*node).ne);
                    let before = self.view(before, (*node).ne);
                    self.node(sys::GGML_OP_ADD, (*node).ne, &[before, result], to)
                },
            });
        }
    }

    /// One chain; its result is written over the node's where it is the `only` one.
    unsafe fn chain(
        &mut self,
        node: *mut ggml_tensor,
        live: &Live,
        links: &[Link],
        only: bool,
    ) -> *mut ggml_tensor {
        // SAFETY: the node, its sources and the operands are valid, and so is what is made here.
        unsafe {
            let input = (*node).src[1];
            // What is counted beside the elements: tokens, or chosen experts and tokens.
            let mut columns = [(*input).ne[1], (*input).ne[2], (*input).ne[3]];
            let mut state = input;
            for (i, link) in links.iter().enumerate() {
                let to = (only && i + 1 == links.len()).then_some(node);
                state = match *link {
                    Link::Matrix(operand) if i == 0 && links.len() > 1 => {
                        self.first(node, live.operand(operand), &mut columns)
                    }
                    Link::Matrix(operand) => {
                        self.matrix(node, live.operand(operand), state, &mut columns, to)
                    }
                    Link::Scale(operand) => {
                        self.scale(node, live.operand(operand), state, &mut columns, to)
                    }
                    Link::Spread(operand) => self.spread(live.operand(operand), state, columns, to),
                    Link::Turn(row) => self.turn(row as i64, state, columns, to),
                };
            }
            state
        }
    }

    /// The product of the node's input, which weights with the same first operand share.
    unsafe fn first(
        &mut self,
        node: *mut ggml_tensor,
        w: *mut ggml_tensor,
        columns: &mut [i64; 3],
    ) -> *mut ggml_tensor {
        // SAFETY: the tensors are valid by the caller's contract.
        unsafe {
            if (*node).op == sys::GGML_OP_MUL_MAT {
                let same = |of, parameters| of == w && parameters == self.parameters;
                let mut known = self.shared.results.iter();
                if let Some((.., result)) = known.find(|(of, p, _)| same(*of, *p)) {
                    return *result;
                }
            }
            let result = self.matrix(node, w, (*node).src[1], columns, None);
            if (*node).op == sys::GGML_OP_MUL_MAT {
                self.shared.results.push((w, self.parameters, result));
                self.kept = self.at;
            }
            result
        }
    }

    unsafe fn matrix(
        &mut self,
        node: *mut ggml_tensor,
        w: *mut ggml_tensor,
        state: *mut ggml_tensor,
        columns: &mut [i64; 3],
        to: Target,
    ) -> *mut ggml_tensor {
        // SAFETY: the tensors are valid by the caller's contract.
        unsafe {
            let [k, m, stack, _] = (*w).ne;
            if (*node).op == sys::GGML_OP_MUL_MAT_ID && stack > 1 {
                let ids = (*node).src[2];
                let state = self.shaped(state, [k, columns[0], columns[1], 1]);
                *columns = [(*ids).ne[0], (*ids).ne[1], 1];
                let ne = [m, columns[0], columns[1], 1];
                return self.node(sys::GGML_OP_MUL_MAT_ID, ne, &[w, state, ids], to);
            }
            let runs: i64 = elements(state) / k;
            let same = (*state).ne[0] == k;
            // One product of all columns, where nothing forbids it.
            let flat = stack == 1 && sys::ggml_is_contiguous(state);
            let (state, outer) = if same && !flat {
                (state, [(*state).ne[1], (*state).ne[2], (*state).ne[3]])
            } else {
                (self.shaped(state, [k, runs, 1, 1]), [runs, 1, 1])
            };
            let ne = [m, outer[0], outer[1], outer[2]];
            let product = self.node(sys::GGML_OP_MUL_MAT, ne, &[w, state], to);
            let row = m * runs / columns.iter().product::<i64>();
            self.view(product, [row, columns[0], columns[1], columns[2]])
        }
    }

    unsafe fn scale(
        &mut self,
        node: *mut ggml_tensor,
        scales: *mut ggml_tensor,
        state: *mut ggml_tensor,
        columns: &mut [i64; 3],
        to: Target,
    ) -> *mut ggml_tensor {
        // SAFETY: the tensors are valid by the caller's contract.
        unsafe {
            let [k, stack, ..] = (*scales).ne;
            let state = self.shaped(state, [k, columns[0], columns[1], columns[2]]);
            if stack == 1 {
                return self.node(sys::GGML_OP_MUL, (*state).ne, &[state, scales], to);
            }
            if (*node).op == sys::GGML_OP_MUL_MAT_ID {
                let ids = (*node).src[2];
                // The same table for every token: its stride is zero.
                let table = self.view(scales, [k, stack, (*ids).ne[1], 1]);
                (*table).nb[2] = 0;
                let ne = [k, (*ids).ne[0], (*ids).ne[1], 1];
                let rows = self.node(sys::GGML_OP_GET_ROWS, ne, &[table, ids], None);
                *columns = [ne[1], ne[2], 1];
                return self.node(sys::GGML_OP_MUL, ne, &[rows, state], to);
            }
            let scales = self.view(scales, [k, 1, stack, 1]);
            self.node(sys::GGML_OP_MUL, (*state).ne, &[state, scales], to)
        }
    }

    unsafe fn spread(
        &mut self,
        scales: *mut ggml_tensor,
        state: *mut ggml_tensor,
        columns: [i64; 3],
        to: Target,
    ) -> *mut ggml_tensor {
        // SAFETY: the tensors are valid by the caller's contract.
        unsafe {
            let [k, count, ..] = (*scales).ne;
            let outer: i64 = columns.iter().product();
            let state = self.shaped(state, [k, 1, outer, 1]);
            let ne = [k, count, outer, 1];
            let copies = self.node(sys::GGML_OP_REPEAT, ne, &[state], None);
            let product = self.node(sys::GGML_OP_MUL, ne, &[copies, scales], to);
            self.view(product, [k * count, columns[0], columns[1], columns[2]])
        }
    }

    unsafe fn turn(
        &mut self,
        row: i64,
        state: *mut ggml_tensor,
        columns: [i64; 3],
        to: Target,
    ) -> *mut ggml_tensor {
        // SAFETY: the tensors are valid by the caller's contract.
        unsafe {
            let outer: i64 = columns.iter().product();
            let rest = elements(state) / row / outer;
            let state = self.shaped(state, [row, rest, outer, 1]);
            let turned = self.view(state, [rest, row, outer, 1]);
            (*turned).nb = (*state).nb;
            (*turned).nb.swap(0, 1);
            let flat = self.node(sys::GGML_OP_CONT, [rest, row, outer, 1], &[turned], to);
            self.view(flat, [rest * row, columns[0], columns[1], columns[2]])
        }
    }

    /// The tensor itself if it has this shape, else its elements in this shape.
    unsafe fn shaped(&mut self, tensor: *mut ggml_tensor, ne: [i64; 4]) -> *mut ggml_tensor {
        // SAFETY: the tensor is valid by the caller's contract.
        unsafe {
            if (*tensor).ne == ne {
                return tensor;
            }
            let whole = if sys::ggml_is_contiguous(tensor) {
                tensor
            } else {
                self.node(sys::GGML_OP_CONT, (*tensor).ne, &[tensor], None)
            };
            self.view(whole, ne)
        }
    }

    /// The same data in another shape, its elements in a row.
    unsafe fn view(&mut self, of: *mut ggml_tensor, ne: [i64; 4]) -> *mut ggml_tensor {
        // SAFETY: the tensor is valid by the caller's contract.
        let (ty, buffer, data) = unsafe { ((*of).type_, (*of).buffer, (*of).data) };
        let view = self.blank(ty, ne);
        // SAFETY: `blank` gives a valid tensor.
        unsafe {
            (*view).buffer = buffer;
            (*view).data = data;
        }
        view
    }

    /// A node with a result in single precision: in scratch memory, or where `to` has its own.
    unsafe fn node(
        &mut self,
        op: sys::ggml_op,
        ne: [i64; 4],
        sources: &[*mut ggml_tensor],
        to: Target,
    ) -> *mut ggml_tensor {
        let made = self.blank(sys::GGML_TYPE_F32, ne);
        // SAFETY: `blank` gives a valid tensor, and the target is valid by the caller's contract.
        unsafe {
            (*made).op = op;
            (*made).flags = sys::GGML_TENSOR_FLAG_COMPUTE as i32;
            if matches!(op, sys::GGML_OP_MUL_MAT | sys::GGML_OP_MUL_MAT_ID) {
                (*made).op_params = self.parameters;
            }
            (&mut (*made).src)[..sources.len()].copy_from_slice(sources);
            match to {
                Some(target) => {
                    (*made).buffer = (*target).buffer;
                    (*made).data = (*target).data;
                }
                None => {
                    (*made).buffer = self.scratch.buffer;
                    (*made).data = self.scratch.base.wrapping_add(self.at).cast::<c_void>();
                    self.at = (self.at + sys::ggml_nbytes(made)).next_multiple_of(ALIGNMENT);
                }
            }
        }
        self.nodes.push(made);
        made
    }

    fn blank(&mut self, ty: sys::ggml_type, ne: [i64; 4]) -> *mut ggml_tensor {
        let blank = super::wrapped::tensor(ty, ne);
        if self.used == self.made.len() {
            self.made.push(NonNull::from(Box::leak(Box::new(blank))));
        } else {
            // SAFETY: it came from a box, which only `drop` takes back.
            unsafe { self.made[self.used].write(blank) };
        }
        self.used += 1;
        self.made[self.used - 1].as_ptr()
    }
}

impl Drop for Rewriter {
    fn drop(&mut self) {
        for made in self.made.drain(..) {
            // SAFETY: each came from a box, and nobody computes its graph any more.
            drop(unsafe { Box::from_raw(made.as_ptr()) });
        }
    }
}

unsafe fn elements(tensor: *const ggml_tensor) -> i64 {
    // SAFETY: the tensor is valid by the caller's contract.
    unsafe { (*tensor).ne.iter().product() }
}
