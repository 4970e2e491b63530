//! What the parts of a state are.

use dwindle_formats::gguf::TensorType;
use dwindle_formats::state::{Attention, Part, Section, State};

/// Sections of attention.
pub(crate) fn attentions(state: &State) -> impl Iterator<Item = &Attention> {
    state.sections.iter().filter_map(|section| match section {
        Section::Attention(attention) => Some(attention),
        Section::Recurrent { .. } => None,
    })
}

/// The widths of layers.
pub(crate) fn widths(parts: &[Part]) -> Vec<usize> {
    parts.iter().map(|p| p.width as usize).collect()
}

/// The Hadamard matrices that llama.cpp has before a type: for quantized ones and heads that are a multiple of 64.
pub(crate) fn turns_of(ty: TensorType, [key, value]: [usize; 2]) -> [u32; 2] {
    if !ty.is_quantized() {
        return [0, 0];
    }
    let of_key = match key > 0 && key.is_multiple_of(64) {
        true => 1u32 << key.trailing_zeros(),
        false => 0,
    };
    [
        of_key,
        if value > 0 && value.is_multiple_of(64) {
            64
        } else {
            0
        },
    ]
}
