//! How a model rotates its keys by position, as far as its metadata say.

use std::ffi::c_int;

use llama_cpp_sys_2 as sys;

use super::guard::{Failure, guarded};
use super::model::Model;

/// RoPE's parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Whether an element's partner is half of the rotated elements away, and not its neighbour.
    pub is_by_halves: bool,
    /// Whether only the last elements of a head are rotated, as in latent attention.
    pub is_latent: bool,
    /// Elements of a head that are rotated; `None` for all.
    pub elements: Option<usize>,
    /// The base of frequencies.
    pub base: f64,
    /// What positions are divided by.
    pub scale: f64,
    /// The length that YaRN (arXiv 2309.00071) stretches, where it is used.
    pub stretched: Option<f64>,
}

impl Model {
    /// How keys are rotated; `None` where they are not.
    pub fn rope(&self) -> Option<Rope> {
        let mut ty = 0;
        // SAFETY: the model lives.
        guarded(|failure| unsafe { dwindle_rope_type(self.raw(), &mut ty, failure) }).ok()?;
        if ty == sys::LLAMA_ROPE_TYPE_NONE {
            return None;
        }
        let number = |key: &str| self.own_words(key)?.parse::<f64>().ok();
        let kind = self.own_words("rope.scaling.type").unwrap_or_default();
        let factor = number("rope.scaling.factor").filter(|f| *f > 0.0);
        Some(Rope {
            is_by_halves: ty != sys::LLAMA_ROPE_TYPE_NORM,
            is_latent: self.own_words("attention.kv_lora_rank").is_some(),
            elements: number("rope.dimension_count").map(|n| n as usize),
            base: number("rope.freq_base").unwrap_or(10000.0),
            scale: match kind.as_str() {
                "linear" | "yarn" => factor.unwrap_or(1.0),
                _ => 1.0,
            },
            stretched: match kind.as_str() {
                "yarn" => number("rope.scaling.original_context_length"),
                _ => None,
            },
        })
    }
}

unsafe extern "C" {
    fn dwindle_rope_type(
        model: *const sys::llama_model,
        ty: *mut i32,
        failure: *mut Failure,
    ) -> c_int;
}
