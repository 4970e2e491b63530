//! Sources in other forms than safetensors of floats beside a `tokenizer.json`.

use std::path::Path;

use dwindle::architecture::{self, Model};
use dwindle_formats::gguf::TensorType;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::common::folder::Tensor;
use crate::common::record::Record;

/// GPT-2's vocabulary and merges in files of their own, in place of `tokenizer.json`.
fn take_apart(dir: &Path) {
    let path = dir.join("tokenizer.json");
    let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let model = &json["model"];
    std::fs::write(dir.join("vocab.json"), model["vocab"].to_string()).unwrap();
    let merge = |merge: &Value| match merge {
        Value::String(pair) => pair.clone(),
        pair => format!(
            "{} {}",
            pair[0].as_str().unwrap(),
            pair[1].as_str().unwrap()
        ),
    };
    let merges: Vec<String> = model["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(merge)
        .collect();
    let text = format!("#version: 0.2\n{}\n", merges.join("\n"));
    std::fs::write(dir.join("merges.txt"), text).unwrap();
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_vocabulary_and_merges_are_a_tokenizer_of_gpt_2() {
    let dir = tempdir().unwrap();
    Record::of("gpt2").write(dir.path());
    let (_, whole) = architecture::open(dir.path()).unwrap();
    take_apart(dir.path());
    let (_, apart) = architecture::open(dir.path()).unwrap();
    assert_eq!(apart.metadata, whole.metadata);
    // Others split texts otherwise, and say so in `tokenizer.json` only.
    let other = tempdir().unwrap();
    Record::of("qwen2").write(other.path());
    take_apart(other.path());
    let message = architecture::open(other.path()).err().unwrap().to_string();
    assert!(
        message.contains("don't say how this model splits texts"),
        "{message}"
    );
}

#[test]
fn what_llama_cpp_cannot_compute_is_refused_with_the_reason() {
    let dir = tempdir().unwrap();
    let mut folder = Record::of("gpt2").folder();
    folder.config["architectures"] = json!(["OpenAIGPTLMHeadModel"]);
    folder.write(dir.path());
    let message = architecture::open(dir.path()).err().unwrap().to_string();
    assert!(message.contains("norms stand behind"), "{message}");
}

fn values(dir: &Path) -> (Model, Vec<(String, TensorType, Vec<f32>)>) {
    dwindle::llama::backend::init();
    let (source, model) = architecture::open(dir).unwrap();
    let of = |t: &architecture::ModelTensor| {
        let values = architecture::values(t, source.as_ref(), 0..t.row_count());
        (
            t.name.clone(),
            t.source_type(source.as_ref()),
            values.unwrap(),
        )
    };
    let mut all: Vec<_> = model.tensors.iter().map(of).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    (model, all)
}

/// A stack of experts in MXFP4, and the same as floats that lie transposed.
fn experts(seed: u32, [count, inputs, outputs]: [usize; 3]) -> [Tensor; 3] {
    const LEVELS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let groups = inputs / 32;
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let blocks: Vec<u8> = (0..count * outputs * inputs / 2).map(|_| next()).collect();
    let scales = (0..count * outputs * groups).map(|_| 120 + next() % 4);
    let scales: Vec<u8> = scales.collect();
    let mut bytes = vec![0; count * inputs * outputs * 4];
    for (row, row_blocks) in blocks.chunks(inputs / 2).enumerate() {
        let (expert, output) = (row / outputs, row % outputs);
        for input in 0..inputs {
            let code = row_blocks[input / 2] >> (4 * (input % 2)) & 15;
            let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
            let scale = 2f32.powi(i32::from(scales[row * groups + input / 32]) - 127);
            let value = sign * LEVELS[usize::from(code & 7)] * scale;
            let place = (expert * inputs + input) * outputs + output;
            bytes[4 * place..][..4].copy_from_slice(&value.to_le_bytes());
        }
    }
    let tensor = |dtype, shape: &[usize], bytes| Tensor {
        dtype,
        shape: shape.to_vec(),
        bytes,
    };
    [
        tensor(Dtype::U8, &[count, outputs, groups, 16], blocks),
        tensor(Dtype::U8, &[count, outputs, groups], scales),
        tensor(Dtype::F32, &[count, inputs, outputs], bytes),
    ]
}

/// gpt-oss as it is released has its experts in MXFP4, and as floats they lie transposed: both are the same model.
#[test]
fn experts_in_codes_are_those_that_floats_are() {
    let mut floats = Record::of("gpt-oss").folder();
    let mut codes = Record::of("gpt-oss").folder();
    codes.config["quantization_config"] = json!({ "quant_method": "mxfp4" });
    let is_expert = |name: &&String| name.ends_with("_proj") && name.contains("experts");
    let names: Vec<String> = floats.tensors.keys().filter(is_expert).cloned().collect();
    assert_eq!(names.len(), 8);
    for (seed, name) in (1..).zip(&names) {
        let shape = floats.tensors[name].shape.clone().try_into().unwrap();
        let [blocks, scales, values] = experts(seed, shape);
        floats.tensors.insert(name.clone(), values);
        codes.tensors.remove(name);
        codes.tensors.insert(format!("{name}_blocks"), blocks);
        codes.tensors.insert(format!("{name}_scales"), scales);
    }
    let [of_floats, of_codes] = [&floats, &codes].map(|folder| {
        let dir = tempdir().unwrap();
        folder.write(dir.path());
        values(dir.path()).1
    });
    let mut compared = 0;
    for ((name, _, expected), (own, ty, found)) in of_floats.iter().zip(&of_codes) {
        assert_eq!((name, expected), (own, found));
        if name.ends_with("_exps.weight") {
            assert_eq!(*ty, TensorType::MXFP4, "{name}");
            compared += 1;
        }
    }
    assert_eq!((of_codes.len(), compared), (of_floats.len(), 12));
}
