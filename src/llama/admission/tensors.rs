//! Tensors: the types that llama.cpp's kernels compute with. Shapes are checked against the
//! hyperparameters by llama.cpp itself.

use dwindle_formats::gguf::{Metadata, TensorType, Value};

use super::{Described, Refusal};
use dwindle_ggml as ggml;

/// Tensors of whole numbers, which are looked up and not computed with.
const TABLES: [&str; 3] = ["tid2eid", "masked_embd_ordering", "d2t"];

/// Parts of the names of tensors that are multiplied or added element by element, or convolved,
/// whatever their number of dimensions. The kernels read single precision.
const ELEMENTWISE: [&str; 7] = [
    "norm",
    ".bias",
    "ssm_d.",
    "ssm_conv1d",
    "shortconv.conv",
    "time_mix_lerp",
    "time_mix_first",
];

pub(super) fn check<'a>(
    metadata: &Metadata,
    tensors: impl Iterator<Item = Described<'a>>,
) -> Result<(), Refusal> {
    if metadata.get("general.type").and_then(Value::as_str) == Some("mmproj") {
        // llama.cpp refuses it.
        return Ok(());
    }
    for tensor in tensors {
        if TABLES.iter().any(|table| tensor.name.contains(table)) {
            continue;
        }
        let vector = tensor.shape.len() < 2;
        let elementwise = vector
            || tensor.name.ends_with(".ssm_a")
            || ELEMENTWISE.iter().any(|part| tensor.name.contains(part));
        if elementwise && tensor.ty != TensorType::F32 {
            return refuse(&tensor, "F32, as every norm, bias and vector of weights");
        }
        check_factor(&tensor)?;
    }
    Ok(())
}

/// What is multiplied with, or looked up in.
pub(super) fn check_factor(tensor: &Described<'_>) -> Result<(), Refusal> {
    // ggml has products with every type that can be written.
    if !ggml::writable(tensor.ty) {
        return refuse(tensor, "a type of weights");
    }
    if tensor.shape.contains(&0) {
        return Err(Refusal::Shape {
            tensor: tensor.name.to_string(),
            found: tensor.shape.to_vec(),
            expected: "no zero in it".into(),
        });
    }
    Ok(())
}

fn refuse(tensor: &Described<'_>, expected: &'static str) -> Result<(), Refusal> {
    Err(Refusal::Type {
        tensor: tensor.name.to_string(),
        found: tensor.ty,
        expected,
    })
}
