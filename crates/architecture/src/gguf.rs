//! A GGUF file as a model.

use super::{Assembly, Error, Model, ModelTensor, is_always_f32};
use dwindle_checkpoint::Source as _;
use dwindle_checkpoint::gguf::Gguf;

/// The model in a GGUF file. Its metadata passes through, save what depends on the types of the
/// tensors and what dwindle wrote about itself.
///
/// # Errors
/// When the file names no architecture.
pub fn from_gguf(file: &Gguf) -> Result<Model, Error> {
    let key = "general.architecture";
    let architecture = file
        .metadata()
        .get(key)
        .and_then(|v| v.as_str())
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Error::Gguf {
            path: file.path().display().to_string(),
            key,
        })?
        .to_string();
    let mut metadata = file.metadata().clone();
    metadata.retain(|key| {
        !key.starts_with("dwindle.")
            && !key.starts_with("split.")
            && key != "general.file_type"
            && key != "general.quantization_version"
            && key != "general.alignment"
    });
    let tensors = file
        .tensors()
        .iter()
        .enumerate()
        .map(|(index, tensor)| ModelTensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            assembly: Assembly::Copy(index),
            always_f32: is_always_f32(&tensor.name, &tensor.shape),
        })
        .collect();
    Ok(Model {
        architecture,
        metadata,
        tensors,
        left_out: Vec::new(),
        remark: None,
    })
}
