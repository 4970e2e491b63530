//! Quantized checkpoints: which of a folder's tensors are the parts of which matrix.
//!
//! The values are what the method's own library computes from the parts, in F32. Where one of ggml's types has
//! the same codes and scales, the matrix has that type, and nothing is computed.

mod awq;
mod bag;
mod bitsandbytes;
mod codes;
mod compressed;
mod float4;
mod float8;
mod gptq;
mod scales;
mod tensor;

use std::collections::HashMap;
use std::path::Path;

use dwindle_mapped::Mapping;
use serde_json::{Map, Value};

use crate::Error;
use crate::raw::Raw;
use bag::Bag;
use compressed::Compressed;
use gptq::Gptq;
pub(crate) use scales::number;
pub(crate) use tensor::Quantized;

/// Endings of what runtimes keep beside weights, and a file of ggml's has no place for.
const UNUSED: [&str; 9] = [
    ".input_scale",
    ".output_scale",
    ".input_global_scale",
    ".k_scale",
    ".v_scale",
    ".activation_scale",
    "_activation_scale",
    ".qscale_act",
    ".weight_format",
];

/// How a checkpoint is quantized.
#[derive(Debug)]
pub(crate) struct Method(Kind);

#[derive(Debug)]
enum Kind {
    Float8 { block: Option<[usize; 2]> },
    Gptq(Gptq),
    Awq,
    BitsAndBytes,
    Compressed(Compressed),
    ModelOpt,
    Mxfp4,
}

/// What a tensor of a folder is.
#[derive(Debug)]
pub(crate) enum Tensor {
    /// Elements as they are.
    Plain(Raw),
    /// Codes.
    Quantized(Box<Quantized>),
}

/// What [`Method::of`] supports, for people.
pub(crate) const SUPPORTED: &str =
    "FP8, GPTQ, AWQ, bitsandbytes, compressed-tensors, ModelOpt (FP8, NVFP4) and MXFP4";

impl Method {
    /// What the files of a folder say, or `None` for one that isn't quantized.
    ///
    /// # Errors
    /// A method that is not supported.
    pub(crate) fn of(
        dir: &Path,
        config: &Map<String, Value>,
        json: &dyn Fn(&str) -> Result<Option<Value>, Error>,
    ) -> Result<Option<Method>, Error> {
        let text_config = config.get("text_config").and_then(Value::as_object);
        let own = [Some(config), text_config].into_iter().flatten();
        let keys = ["quantization_config", "compression_config"];
        let declared = own
            .flat_map(|map| keys.map(|key| map.get(key)))
            .flatten()
            .find(|value| !value.is_null());
        if let Some(declared) = declared {
            return Method::read(dir, declared, None, "config.json").map(Some);
        }
        let files = [
            ("quantize_config.json", "gptq"),
            ("quant_config.json", "awq"),
            ("hf_quant_config.json", "modelopt"),
        ];
        for (file, method) in files {
            if let Some(declared) = json(file)? {
                return Method::read(dir, &declared, Some(method), file).map(Some);
            }
        }
        Ok(None)
    }

    fn read(
        dir: &Path,
        declared: &Value,
        named: Option<&str>,
        file: &'static str,
    ) -> Result<Method, Error> {
        let text = |key: &str| declared.get(key).and_then(Value::as_str);
        let method = text("quant_method").or(named).or(text("quant_algo"));
        let refused = |what: String| Error::Quantized {
            dir: dir.to_path_buf(),
            method: what,
            file,
            supported: SUPPORTED,
        };
        let method = method.ok_or_else(|| refused("an unnamed method".into()))?;
        let count = |key: &str| {
            let value = declared.get(key).and_then(Value::as_u64);
            value.and_then(|n| usize::try_from(n).ok())
        };
        let kind = match method.to_lowercase().as_str() {
            "fp8" | "fbgemm_fp8" => Kind::Float8 {
                block: pair(declared.get("weight_block_size")),
            },
            "gptq" => {
                let format = text("checkpoint_format").unwrap_or("gptq");
                let bits = count("bits").unwrap_or(4);
                if !matches!(format, "gptq" | "gptq_v2") || ![2, 3, 4, 8].contains(&bits) {
                    return Err(refused(format!("GPTQ, {bits} bits, layout {format}")));
                }
                Kind::Gptq(Gptq {
                    bits,
                    plus: u8::from(format == "gptq"),
                    group: count("group_size").filter(|n| *n > 0),
                })
            }
            "awq" => {
                let version = text("version").unwrap_or("gemm").to_lowercase();
                let bits = count("bits").or(count("w_bit")).unwrap_or(4);
                if version != "gemm" || bits != 4 {
                    return Err(refused(format!("AWQ, {bits} bits, version {version}")));
                }
                Kind::Awq
            }
            "bitsandbytes" => Kind::BitsAndBytes,
            "compressed-tensors" => Kind::Compressed(compressed(declared)),
            "modelopt" => Kind::ModelOpt,
            "mxfp4" => Kind::Mxfp4,
            other => return Err(refused(other.to_string())),
        };
        Ok(Method(kind))
    }

    fn take(&self, name: &str, bag: &mut Bag<'_>) -> Result<Option<Quantized>, Error> {
        match &self.0 {
            Kind::Float8 { block } => float8::take(name, bag, *block),
            Kind::Gptq(gptq) => gptq.take(name, bag),
            Kind::Awq => awq::take(name, bag),
            Kind::BitsAndBytes => bitsandbytes::take(name, bag),
            Kind::Compressed(compressed) => compressed.take(name, bag),
            Kind::ModelOpt => match float4::take_modelopt(name, bag)? {
                None => float8::take(name, bag, None),
                found => Ok(found),
            },
            Kind::Mxfp4 => float4::take_experts(name, bag),
        }
    }
}

/// What compressed-tensors declares of weights.
fn compressed(declared: &Value) -> Compressed {
    let groups = declared.get("config_groups").and_then(Value::as_object);
    let weights: Vec<&Value> = groups
        .into_iter()
        .flat_map(|groups| groups.values())
        .filter_map(|group| group.get("weights"))
        .collect();
    let bits = weights
        .iter()
        .filter_map(|weights| weights.get("num_bits")?.as_u64());
    let mut bits: Vec<usize> = bits.filter_map(|n| usize::try_from(n).ok()).collect();
    bits.sort_unstable();
    bits.dedup();
    let block = weights
        .iter()
        .find_map(|weights| pair(weights.get("block_structure")));
    Compressed { bits, block }
}

/// Two sizes.
fn pair(value: Option<&Value>) -> Option<[usize; 2]> {
    let list = value?.as_array()?;
    let sizes: Vec<usize> = list
        .iter()
        .filter_map(|n| usize::try_from(n.as_u64()?).ok())
        .collect();
    sizes.try_into().ok()
}

/// The tensors that those of files make, in the files' order.
///
/// # Errors
/// When a part of a matrix is missing, or fits no other.
pub(crate) fn gather(
    method: Option<&Method>,
    raws: Vec<Raw>,
    shards: &[Mapping],
) -> Result<Vec<Tensor>, Error> {
    let Some(method) = method else {
        return Ok(raws.into_iter().map(Tensor::Plain).collect());
    };
    let names: Vec<String> = raws.iter().map(|raw| raw.name.clone()).collect();
    let mut bag = Bag::new(raws, shards);
    let mut made = HashMap::new();
    // By name, since codes come before their scales then, whatever files they are in.
    let mut sorted: Vec<(usize, &String)> = names.iter().enumerate().collect();
    sorted.sort_by_key(|(_, name)| *name);
    for (place, name) in sorted {
        if bag.get(name).is_some()
            && let Some(matrix) = method.take(name, &mut bag)?
        {
            made.insert(place, matrix);
        }
    }
    let mut tensors = Vec::new();
    for (place, name) in names.iter().enumerate() {
        if let Some(matrix) = made.remove(&place) {
            tensors.push(Tensor::Quantized(Box::new(matrix)));
        } else if let Some(raw) = bag.take(name)
            && !UNUSED.iter().any(|ending| name.ends_with(ending))
        {
            tensors.push(Tensor::Plain(raw));
        }
    }
    Ok(tensors)
}
