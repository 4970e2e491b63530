//! llama-quantize's mixtures by its own code, which is compiled into the shim.

use std::ffi::{CStr, CString, c_char};

use dwindle_formats::gguf::TensorType;
use dwindle_ggml::{Choice, FileType, MAX_LAYERS, MixtureError, MixtureTensor, ModelDesc};

/// As [`dwindle_ggml::mixture_types`].
pub(super) fn mixture_types(
    desc: &ModelDesc,
    tensors: &[MixtureTensor<'_>],
    file_type: FileType,
    has_importance: bool,
    pure: bool,
) -> Result<Vec<Choice>, MixtureError> {
    if desc.n_layer == 0 || desc.n_layer > MAX_LAYERS {
        return Err(MixtureError::Layers {
            found: desc.n_layer,
        });
    }
    let refused = |reason: String| MixtureError::Refused {
        file_type: file_type.name,
        architecture: desc.architecture.clone(),
        reason,
    };
    let names = tensors
        .iter()
        .map(|t| c_name(t.name))
        .collect::<Result<Vec<CString>, MixtureError>>()?;
    let mut raw = tensors
        .iter()
        .zip(&names)
        .map(|(t, name)| RawTensor::new(t, name))
        .collect::<Result<Vec<RawTensor>, MixtureError>>()?;
    let architecture =
        CString::new(desc.architecture.as_str()).map_err(|e| refused(e.to_string()))?;
    let raw_desc = RawDesc::new(desc, &architecture);
    let mut message = [0 as c_char; 512];
    // SAFETY: the description, the names and the tensors outlive the call; the shim writes the
    // results into `raw` and at most `message.len()` bytes with a terminator, and throws nothing.
    let failed = unsafe {
        dwindle_mixture(
            &raw_desc,
            file_type.id as i32,
            has_importance,
            pure,
            raw.as_mut_ptr(),
            raw.len(),
            message.as_mut_ptr(),
            message.len(),
        )
    };
    if failed != 0 {
        // SAFETY: the shim has terminated the message.
        let reason = unsafe { CStr::from_ptr(message.as_ptr()) };
        return Err(refused(reason.to_string_lossy().into_owned()));
    }
    let choices = raw.iter().map(|t| {
        t.choice()
            .map_err(|id| refused(format!("it uses ggml type {id}, which is not known")))
    });
    choices.collect()
}

/// ggml truncates longer names, which would change what the rules see.
fn c_name(name: &str) -> Result<CString, MixtureError> {
    let refused = || MixtureError::Tensor {
        name: name.to_string(),
    };
    if name.len() > dwindle_formats::gguf::limits::NAME_BYTES as usize {
        return Err(refused());
    }
    CString::new(name).map_err(|_| refused())
}

/// `struct llama_quant_model_desc` of llama-ext.h.
#[repr(C)]
struct RawDesc {
    architecture: *const c_char,
    n_embd: u32,
    n_ff: u32,
    n_layer: u32,
    n_head: u32,
    n_head_kv: u32,
    n_expert: u32,
    n_embd_head_k: u32,
    n_embd_head_v: u32,
}

impl RawDesc {
    fn new(desc: &ModelDesc, architecture: &CStr) -> RawDesc {
        RawDesc {
            architecture: architecture.as_ptr(),
            n_embd: desc.n_embd,
            n_ff: desc.n_ff,
            n_layer: desc.n_layer,
            n_head: desc.n_head,
            n_head_kv: desc.n_head_kv.max(1), // a divisor in llama.cpp
            n_expert: desc.n_expert,
            n_embd_head_k: desc.n_embd_head_k,
            n_embd_head_v: desc.n_embd_head_v,
        }
    }
}

/// `struct dwindle_tensor` of shim.cpp.
#[repr(C)]
struct RawTensor {
    name: *const c_char,
    ne: [i64; 4],
    ty: i32,
    target: i32,
    needs_imatrix: bool,
}

impl RawTensor {
    fn new(t: &MixtureTensor<'_>, name: &CStr) -> Result<RawTensor, MixtureError> {
        let refused = || MixtureError::Tensor {
            name: t.name.to_string(),
        };
        // ggml asserts whole blocks and computes sizes without looking for overflow.
        let bytes = t.ty.bytes(t.shape).ok_or_else(refused)?;
        if t.shape.is_empty() || t.shape.len() > 4 || bytes > i64::MAX as u64 / 2 {
            return Err(refused());
        }
        let mut ne = [1; 4];
        for (to, from) in ne.iter_mut().zip(t.shape) {
            *to = i64::try_from(*from).map_err(|_| refused())?;
        }
        Ok(RawTensor {
            name: name.as_ptr(),
            ne,
            ty: t.ty.id() as i32,
            target: -1,
            needs_imatrix: false,
        })
    }

    /// What llama.cpp has chosen; a number that is no known type is the error.
    fn choice(&self) -> Result<Choice, u32> {
        let ty = match u32::try_from(self.target) {
            Err(_) => None,
            Ok(id) => Some(TensorType::from_id(id).ok_or(id)?),
        };
        Ok(Choice {
            ty,
            needs_importance: self.needs_imatrix,
        })
    }
}

unsafe extern "C" {
    fn dwindle_mixture(
        desc: *const RawDesc,
        ftype: i32,
        has_imatrix: bool,
        pure: bool,
        tensors: *mut RawTensor,
        n_tensors: usize,
        error: *mut c_char,
        error_len: usize,
    ) -> i32;
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwindle_ggml::FILE_TYPES;

    fn desc(n_layer: u32) -> ModelDesc {
        ModelDesc {
            architecture: "llama".into(),
            n_embd: 512,
            n_ff: 1024,
            n_layer,
            n_head: 8,
            n_head_kv: 8,
            n_expert: 0,
            n_embd_head_k: 64,
            n_embd_head_v: 64,
        }
    }

    #[test]
    fn the_main_type_of_a_file_type_is_llama_quantizes() {
        let tensors = [MixtureTensor {
            name: "blk.3.ffn_gate.weight",
            shape: &[512, 1024],
            ty: TensorType::F32,
        }];
        for file_type in FILE_TYPES {
            let found = mixture_types(&desc(8), &tensors, *file_type, true, true).unwrap();
            let ty = found[0].ty.unwrap_or(TensorType::F32);
            assert_eq!(ty, file_type.ty, "{}", file_type.name);
        }
    }

    fn types(name: &str, importance: bool, n_ff: u64) -> Vec<(String, Option<TensorType>)> {
        let mut shapes = vec![
            ("token_embd.weight".to_string(), vec![512, 1000]),
            ("output_norm.weight".to_string(), vec![512]),
        ];
        for layer in 0..8 {
            shapes.push((format!("blk.{layer}.attn_q.weight"), vec![512, 512]));
            shapes.push((format!("blk.{layer}.attn_v.weight"), vec![512, 512]));
            shapes.push((format!("blk.{layer}.ffn_down.weight"), vec![n_ff, 512]));
        }
        let tensors: Vec<MixtureTensor<'_>> = shapes
            .iter()
            .map(|(name, shape)| MixtureTensor {
                name,
                shape,
                ty: TensorType::F16,
            })
            .collect();
        crate::llama::backend::init();
        let file_type = FileType::from_name(name).unwrap();
        let found = mixture_types(&desc(8), &tensors, file_type, importance, false).unwrap();
        shapes
            .into_iter()
            .zip(found)
            .map(|((name, _), choice)| (name, choice.ty))
            .collect()
    }

    fn of(types: &[(String, Option<TensorType>)], name: &str) -> Option<TensorType> {
        types.iter().find(|(n, _)| n == name).unwrap().1
    }

    #[test]
    fn q4_k_m_mixes_and_falls_back() {
        let t = types("Q4_K_M", false, 1000);
        assert_eq!(of(&t, "output_norm.weight"), None);
        assert_eq!(of(&t, "token_embd.weight"), Some(TensorType::Q6_K)); // tied
        assert_eq!(of(&t, "blk.0.attn_q.weight"), Some(TensorType::Q4_K));
        assert_eq!(of(&t, "blk.0.attn_v.weight"), Some(TensorType::Q6_K));
        assert_eq!(of(&t, "blk.1.attn_v.weight"), Some(TensorType::Q4_K));
        // 1000 is a multiple of no block.
        assert_eq!(of(&t, "blk.0.ffn_down.weight"), Some(TensorType::F16));
    }

    #[test]
    fn an_importance_matrix_changes_iq3_xxs() {
        let name = "blk.0.attn_v.weight";
        assert_eq!(
            of(&types("iq3_xxs", false, 1024), name),
            Some(TensorType::IQ3_S)
        );
        assert_eq!(
            of(&types("iq3_xxs", true, 1024), name),
            Some(TensorType::IQ3_XXS)
        );
    }

    #[test]
    fn every_file_type_has_a_mixture() {
        for t in FILE_TYPES {
            assert_eq!(types(t.name, true, 1024).len(), 26, "{}", t.name);
        }
    }

    #[test]
    fn what_llama_cpp_would_abort_on_is_refused() {
        crate::llama::backend::init();
        let q8 = FileType::from_name("q8_0").unwrap();
        assert_eq!(
            mixture_types(&desc(513), &[], q8, false, false),
            Err(MixtureError::Layers { found: 513 })
        );
        let mut unknown = desc(1);
        unknown.architecture = "perceptron".into();
        let err = mixture_types(&unknown, &[], q8, false, false).unwrap_err();
        assert!(err.to_string().contains("does not know"), "{err}");
        let bad = MixtureTensor {
            name: "a.weight",
            shape: &[u64::MAX, 2],
            ty: TensorType::F16,
        };
        assert!(mixture_types(&desc(1), &[bad], q8, false, false).is_err());
    }
}
