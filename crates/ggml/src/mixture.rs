//! llama-quantize's mixtures: which type each tensor gets when a file is made `q4_k_m`.
//!
//! The rules are llama.cpp's own code, run by the installed [`Library`](crate::Library); here stand
//! the questions and the answers.

use dwindle_formats::gguf::TensorType;

/// One of llama-quantize's file types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileType {
    /// llama-quantize's name in lowercase (`q4_k_m`).
    pub name: &'static str,
    /// `general.file_type` of the output (llama.cpp's `llama_ftype`).
    pub id: u32,
    /// The type that a matrix gets where the mixture has no reason for another one.
    pub ty: TensorType,
}

/// Every file type that llama-quantize makes, in the order of its help.
pub const FILE_TYPES: &[FileType] = &[
    ft("q1_0", 40, TensorType::Q1_0),
    ft("q2_0", 41, TensorType::Q2_0),
    ft("q4_0", 2, TensorType::Q4_0),
    ft("q4_1", 3, TensorType::Q4_1),
    ft("mxfp4_moe", 38, TensorType::MXFP4),
    ft("q5_0", 8, TensorType::Q5_0),
    ft("q5_1", 9, TensorType::Q5_1),
    ft("iq2_xxs", 19, TensorType::IQ2_XXS),
    ft("iq2_xs", 20, TensorType::IQ2_XS),
    ft("iq2_s", 28, TensorType::IQ2_XS),
    ft("iq2_m", 29, TensorType::IQ2_S),
    ft("iq1_s", 24, TensorType::IQ1_S),
    ft("iq1_m", 31, TensorType::IQ1_M),
    ft("tq1_0", 36, TensorType::TQ1_0),
    ft("tq2_0", 37, TensorType::TQ2_0),
    ft("q2_k", 10, TensorType::Q2_K),
    ft("q2_k_s", 21, TensorType::Q2_K),
    ft("iq3_xxs", 23, TensorType::IQ3_XXS),
    ft("iq3_s", 26, TensorType::IQ3_S),
    ft("iq3_m", 27, TensorType::IQ3_S),
    ft("iq3_xs", 22, TensorType::IQ3_S),
    ft("q3_k_s", 11, TensorType::Q3_K),
    ft("q3_k_m", 12, TensorType::Q3_K),
    ft("q3_k_l", 13, TensorType::Q3_K),
    ft("iq4_nl", 25, TensorType::IQ4_NL),
    ft("iq4_xs", 30, TensorType::IQ4_XS),
    ft("q4_k_s", 14, TensorType::Q4_K),
    ft("q4_k_m", 15, TensorType::Q4_K),
    ft("q5_k_s", 16, TensorType::Q5_K),
    ft("q5_k_m", 17, TensorType::Q5_K),
    ft("q6_k", 18, TensorType::Q6_K),
    ft("q8_0", 7, TensorType::Q8_0),
    ft("f16", 1, TensorType::F16),
    ft("bf16", 32, TensorType::BF16),
    ft("f32", 0, TensorType::F32),
];

const fn ft(name: &'static str, id: u32, ty: TensorType) -> FileType {
    FileType { name, id, ty }
}

impl FileType {
    /// Every weight in F16.
    pub const F16: FileType = ft("f16", 1, TensorType::F16);
    /// Every weight in BF16.
    pub const BF16: FileType = ft("bf16", 32, TensorType::BF16);

    /// The file type of this name, in any case; llama-quantize's aliases `q3_k`, `q4_k` and `q5_k`
    /// mean their `_m` variants.
    pub fn from_name(name: &str) -> Option<FileType> {
        let name = name.to_ascii_lowercase();
        let name = match name.as_str() {
            "q3_k" | "q4_k" | "q5_k" => format!("{name}_m"),
            _ => name,
        };
        FILE_TYPES.iter().copied().find(|t| t.name == name)
    }
}

/// What the mixtures read of a model besides its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelDesc {
    /// llama.cpp's name of the family.
    pub architecture: String,
    /// Embedding length.
    pub n_embd: u32,
    /// Feed-forward length.
    pub n_ff: u32,
    /// Layers (`block_count`).
    pub n_layer: u32,
    /// Attention heads.
    pub n_head: u32,
    /// Heads of keys and values.
    pub n_head_kv: u32,
    /// Experts, 0 if there are none.
    pub n_expert: u32,
    /// Length of a key head.
    pub n_embd_head_k: u32,
    /// Length of a value head.
    pub n_embd_head_v: u32,
}

/// A tensor as the source has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MixtureTensor<'a> {
    /// GGUF name.
    pub name: &'a str,
    /// Dimensions, row length first.
    pub shape: &'a [u64],
    /// Element type in the source.
    pub ty: TensorType,
}

/// What llama-quantize does with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The type it becomes, or `None` when it stays as it is.
    pub ty: Option<TensorType>,
    /// llama-quantize refuses this choice without importance weights for the tensor.
    pub needs_importance: bool,
}

/// Why no mixture could be computed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum MixtureError {
    #[error("a model of {found} layers is not supported, expected 1 to {limit}", limit = MAX_LAYERS)]
    Layers { found: u32 },
    #[error("tensor `{name}` has a shape or a name that ggml can't hold")]
    Tensor { name: String },
    #[error("no mixture `{file_type}` for architecture `{architecture}`: {reason}")]
    Refused {
        file_type: &'static str,
        architecture: String,
        reason: String,
    },
    #[error("file type `{0}` is a mixture of llama.cpp's, which is not linked into this program")]
    NotLinked(&'static str),
}

/// llama.cpp's `LLAMA_MAX_LAYERS`; it asserts it.
pub const MAX_LAYERS: u32 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_types_have_names() {
        for t in FILE_TYPES {
            assert_eq!(FileType::from_name(t.name), Some(*t));
        }
        assert_eq!(FileType::from_name("Q5_K").unwrap().name, "q5_k_m");
        assert_eq!(FileType::from_name("q4_k_x"), None);
        assert_eq!(FileType::from_name("f16"), Some(FileType::F16));
    }
}
