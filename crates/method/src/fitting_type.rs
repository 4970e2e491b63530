//! Which element type takes the place of one that a tensor's rows don't divide into.

use dwindle_formats::gguf::TensorType;

/// The type that takes the place of one whose blocks do not divide the rows, as llama-quantize
/// chooses it: the nearest with blocks of 32, or F16 where even these don't fit.
pub fn fitting_type(wanted: TensorType, row_len: u64) -> TensorType {
    use TensorType::*;
    if row_len.is_multiple_of(wanted.block_len()) {
        return wanted;
    }
    let substitute = match wanted {
        Q4_K => Q5_0,
        Q5_K => Q5_1,
        Q6_K => Q8_0,
        Q2_K | Q3_K | IQ1_S | IQ1_M | IQ2_XXS | IQ2_XS | IQ2_S | IQ3_XXS | IQ3_S | IQ4_XS => IQ4_NL,
        TQ1_0 | TQ2_0 | Q1_0 | Q2_0 => Q4_0,
        _ => F16,
    };
    if row_len.is_multiple_of(substitute.block_len()) {
        substitute
    } else {
        F16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_substitute_always_fits() {
        for ty in TensorType::all() {
            for row in [1, 32, 64, 96, 256, 576] {
                assert!(row % fitting_type(ty, row).block_len() == 0);
            }
        }
        assert_eq!(fitting_type(TensorType::Q4_K, 576), TensorType::Q5_0);
        assert_eq!(fitting_type(TensorType::Q4_K, 512), TensorType::Q4_K);
    }
}
