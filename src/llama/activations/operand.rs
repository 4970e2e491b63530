//! Reading the operands of ggml's nodes: on any device, in any layout.

use half::{bf16, f16};
use llama_cpp_sys_2 as sys;

/// Space that is kept from one operand to the next.
#[derive(Default)]
pub(in crate::llama) struct Buffers {
    bytes: Vec<u8>,
    values: Vec<f32>,
}

/// Whether an operand has a type that can be read here.
pub(super) fn is_readable(tensor: &sys::ggml_tensor) -> bool {
    element_size(tensor.type_).is_some()
}

fn element_size(ty: sys::ggml_type) -> Option<usize> {
    match ty {
        sys::GGML_TYPE_F32 => Some(4),
        sys::GGML_TYPE_F16 | sys::GGML_TYPE_BF16 => Some(2),
        _ => None,
    }
}

fn buffer(tensor: &sys::ggml_tensor) -> *mut sys::ggml_backend_buffer {
    // SAFETY: a view's source is valid as long as the view.
    match unsafe { tensor.view_src.as_ref() } {
        Some(source) => source.buffer,
        None => tensor.buffer,
    }
}

/// Whether the processor can read a tensor's data where it lies.
pub(super) fn is_on_host(tensor: &sys::ggml_tensor) -> bool {
    let buffer = buffer(tensor);
    // SAFETY: the buffer of an allocated tensor lives as long as its graph.
    !buffer.is_null() && unsafe { sys::ggml_backend_buffer_is_host(buffer) }
}

/// Elements of each dimension.
fn dims(tensor: &sys::ggml_tensor) -> [usize; 4] {
    tensor.ne.map(|n| n.max(0) as usize)
}

fn is_contiguous(tensor: &sys::ggml_tensor, element: usize) -> bool {
    let mut stride = element;
    for (n, nb) in dims(tensor).into_iter().zip(tensor.nb) {
        if n != 1 && nb != stride {
            return false;
        }
        stride *= n;
    }
    true
}

/// All bytes of a tensor from its first element on, gaps of its layout included.
fn bytes<'a>(
    tensor: &'a sys::ggml_tensor,
    copy: &'a mut Vec<u8>,
) -> Result<&'a [u8], &'static str> {
    if tensor.data.is_null() || buffer(tensor).is_null() {
        return Err("it has no data");
    }
    // SAFETY: the tensor is valid.
    let len = unsafe { sys::ggml_nbytes(tensor) };
    if is_on_host(tensor) {
        // SAFETY: the tensor's data is in the host's memory, computed, `ggml_nbytes` long, and
        // stays as it is until the callback returns.
        return Ok(unsafe { std::slice::from_raw_parts(tensor.data.cast(), len) });
    }
    copy.clear();
    copy.resize(len, 0);
    // SAFETY: the destination has `len` bytes, as many as the tensor.
    unsafe { sys::ggml_backend_tensor_get(tensor, copy.as_mut_ptr().cast(), 0, len) };
    Ok(copy)
}

impl Buffers {
    /// All rows of a tensor one after another.
    pub(in crate::llama) fn rows<'a>(
        &'a mut self,
        tensor: &'a sys::ggml_tensor,
    ) -> Result<&'a [f32], &'static str> {
        let size = element_size(tensor.type_).ok_or("its type is not a float type")?;
        let bytes = bytes(tensor, &mut self.bytes)?;
        if size == 4
            && is_contiguous(tensor, size)
            && let Ok(values) = bytemuck::try_cast_slice(bytes)
        {
            return Ok(values);
        }
        let element = |at: usize| -> f32 {
            let bits = |i: usize| bytes[at + i];
            match tensor.type_ {
                sys::GGML_TYPE_F16 => f16::from_le_bytes([bits(0), bits(1)]).to_f32(),
                sys::GGML_TYPE_BF16 => bf16::from_le_bytes([bits(0), bits(1)]).to_f32(),
                _ => f32::from_le_bytes([bits(0), bits(1), bits(2), bits(3)]),
            }
        };
        let ([n0, n1, n2, n3], nb) = (dims(tensor), tensor.nb);
        self.values.clear();
        self.values.reserve(n0 * n1 * n2 * n3);
        for i3 in 0..n3 {
            for i2 in 0..n2 {
                for i1 in 0..n1 {
                    let row = i1 * nb[1] + i2 * nb[2] + i3 * nb[3];
                    self.values
                        .extend((0..n0).map(|i0| element(row + i0 * nb[0])));
                }
            }
        }
        Ok(&self.values)
    }
}

/// For each slice of a weight the rows of its operand that it multiplies, as [`Buffers::rows`]
/// orders them.
pub(super) fn routes(
    operand: &sys::ggml_tensor,
    weight: &sys::ggml_tensor,
    chosen: Option<&sys::ggml_tensor>,
) -> Result<Vec<Vec<u32>>, &'static str> {
    let [_, n1, n2, n3] = dims(operand);
    let [_, _, w2, w3] = dims(weight);
    let mut slices = vec![Vec::new(); w2 * w3];
    let Some(chosen) = chosen else {
        // ggml repeats each slice for a run of neighbouring indices.
        if w2 == 0 || w3 == 0 || n2 % w2 != 0 || n3 % w3 != 0 {
            return Err("its slices don't divide into those of the weight");
        }
        for i3 in 0..n3 {
            for i2 in 0..n2 {
                let slice = i3 / (n3 / w3) * w2 + i2 / (n2 / w2);
                let first = (i3 * n2 + i2) * n1;
                slices[slice].extend((first..first + n1).map(|row| row as u32));
            }
        }
        return Ok(slices);
    };
    let mut copy = Vec::new();
    let ids = bytes(chosen, &mut copy)?;
    let [used, tokens, ..] = dims(chosen);
    if chosen.type_ != sys::GGML_TYPE_I32 || tokens != n2 || n1 == 0 || n3 != 1 {
        return Err("its experts are chosen in an unknown way");
    }
    for token in 0..tokens {
        for i in 0..used {
            let at = token * chosen.nb[1] + i * chosen.nb[0];
            let id = i32::from_le_bytes([ids[at], ids[at + 1], ids[at + 2], ids[at + 3]]);
            let slice = usize::try_from(id).ok().and_then(|id| slices.get_mut(id));
            let slice = slice.ok_or("a chosen expert is not in the weight")?;
            slice.push((token * n1 + i % n1) as u32);
        }
    }
    Ok(slices)
}
