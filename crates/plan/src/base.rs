//! The types that a recipe's base gives to tensors that no rule names.

use std::collections::BTreeMap;

use dwindle_formats::gguf::TensorType;

use super::recipe::Base;
use super::resolve::PlanError;
use super::subject::Subject;
use dwindle_architecture::{Model, ModelTensor};
use dwindle_ggml::{FileType, MixtureTensor, ModelDesc, mixture_types};

/// The type of each tensor where no rule holds, and the file type's number if there is one.
pub(super) fn base_types(
    base: &Base,
    subject: &Subject<'_>,
) -> Result<(Vec<TensorType>, Option<u32>), PlanError> {
    let Subject { model, source, .. } = *subject;
    let kept = |t: &ModelTensor| {
        if t.always_f32 {
            TensorType::F32
        } else {
            t.source_type(source)
        }
    };
    let file_type = match base {
        Base::Source => {
            let types: Vec<_> = model.tensors.iter().map(kept).collect();
            let id = dominant_file_type(model, &types);
            return Ok((types, id));
        }
        Base::FileType(file_type) => *file_type,
    };
    if let Some(plain) = plain_type(file_type.name) {
        let types = model
            .tensors
            .iter()
            .map(|t| if t.always_f32 { TensorType::F32 } else { plain })
            .collect();
        return Ok((types, Some(file_type.id)));
    }
    let tensors: Vec<_> = model
        .tensors
        .iter()
        .map(|t| MixtureTensor {
            name: &t.name,
            shape: &t.shape,
            ty: kept(t),
        })
        .collect();
    let choices = mixture_types(
        &describe(model)?,
        &tensors,
        file_type,
        subject.measured.importance.is_some(),
        false,
    )?;
    let types = choices
        .iter()
        .zip(&tensors)
        .map(|(choice, t)| choice.ty.unwrap_or(t.ty))
        .collect();
    Ok((types, Some(file_type.id)))
}

/// File types that are one plain type for every weight, as the converter writes them.
fn plain_type(name: &str) -> Option<TensorType> {
    match name {
        "f32" => Some(TensorType::F32),
        "f16" => Some(TensorType::F16),
        "bf16" => Some(TensorType::BF16),
        _ => None,
    }
}

/// `general.file_type` of a file in its source's types: that of the type with the most bytes.
fn dominant_file_type(model: &Model, types: &[TensorType]) -> Option<u32> {
    let mut bytes = BTreeMap::new();
    for (tensor, ty) in model.tensors.iter().zip(types) {
        *bytes.entry(*ty).or_insert(0) += ty.bytes(&tensor.shape).unwrap_or(0);
    }
    let (ty, _) = bytes.into_iter().max_by_key(|(ty, n)| (*n, *ty))?;
    FileType::from_name(ty.name()).map(|f| f.id)
}

/// What llama-quantize's mixtures look at besides tensors.
fn describe(model: &Model) -> Result<ModelDesc, PlanError> {
    let get = |suffix: &str| {
        let key = format!("{}.{suffix}", model.architecture);
        match model.metadata.get(&key) {
            // Some families have one value a layer; the mixtures look at the largest.
            Some(dwindle_formats::gguf::Value::Array(a)) => a.max_u64(),
            Some(v) => v.as_u64(),
            None => None,
        }
        .and_then(|v| u32::try_from(v).ok())
        .ok_or(PlanError::Metadata(key))
    };
    let n_embd = get("embedding_length")?;
    let n_head = get("attention.head_count")?;
    let head_dim = n_embd.checked_div(n_head).unwrap_or(0);
    Ok(ModelDesc {
        architecture: model.architecture.clone(),
        n_embd,
        n_ff: get("feed_forward_length").unwrap_or(0),
        n_layer: get("block_count")?,
        n_head,
        n_head_kv: get("attention.head_count_kv").unwrap_or(n_head),
        n_expert: get("expert_count").unwrap_or(0),
        n_embd_head_k: get("attention.key_length").unwrap_or(head_dim),
        n_embd_head_v: get("attention.value_length").unwrap_or(head_dim),
    })
}
