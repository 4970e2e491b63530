//! Linear layers among the nodes of ggml's graph.

use std::ffi::CStr;

use llama_cpp_sys_2 as sys;

/// A linear layer in the graph.
pub(super) struct Linear<'a> {
    pub weight_name: &'a str,
    pub weight: &'a sys::ggml_tensor,
    pub operand: &'a sys::ggml_tensor,
    /// The experts chosen for each row, of MUL_MAT_ID.
    pub chosen: Option<&'a sys::ggml_tensor>,
}

impl<'a> Linear<'a> {
    pub(super) fn of(node: &'a sys::ggml_tensor) -> Option<Linear<'a>> {
        let routed = match node.op {
            sys::GGML_OP_MUL_MAT => false,
            sys::GGML_OP_MUL_MAT_ID => true,
            _ => return None,
        };
        // SAFETY: the sources of a node are valid tensors while its graph is.
        let source = |i: usize| unsafe { node.src[i].as_ref() };
        let (weight, operand) = (source(0)?, source(1)?);
        let weight_name = weight_name(name(weight))?;
        Some(Linear {
            weight_name,
            weight,
            operand,
            chosen: if routed { Some(source(2)?) } else { None },
        })
    }

    /// What is the same for layers that read the same.
    pub(super) fn key(&self) -> (usize, usize) {
        let chosen = self.chosen.map_or(0, address);
        (address(self.operand), chosen)
    }

    /// Matrices that the weight stacks.
    pub(super) fn slices(&self) -> usize {
        (self.weight.ne[2] * self.weight.ne[3]).max(1) as usize
    }
}

pub(super) fn address(tensor: &sys::ggml_tensor) -> usize {
    std::ptr::from_ref(tensor).addr()
}

pub(in crate::llama) fn name(tensor: &sys::ggml_tensor) -> &str {
    // SAFETY: ggml keeps names terminated within their array.
    let name = unsafe { CStr::from_ptr(tensor.name.as_ptr()) };
    name.to_str().unwrap_or("")
}

/// The name of a weight, also where the scheduler has copied it (`CUDA0#blk.0.attn_k.weight#0`).
fn weight_name(name: &str) -> Option<&str> {
    let name = match name.split_once('#') {
        Some((_, rest)) => rest.split('#').next().unwrap_or(rest),
        None => name,
    };
    name.ends_with(".weight").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::weight_name;

    #[test]
    fn weights_are_known_by_name() {
        assert_eq!(
            weight_name("blk.0.attn_q.weight"),
            Some("blk.0.attn_q.weight")
        );
        assert_eq!(weight_name("CUDA0#output.weight#0"), Some("output.weight"));
        assert_eq!(weight_name("CUDA0#output.weight"), Some("output.weight"));
        assert_eq!(weight_name("blk.0.attn_q.weight (view)"), None);
        assert_eq!(weight_name("Qcur-0"), None);
    }
}
