//! Every family against its record: llama.cpp's converter's keys and tensors, transformers' predictions.

use std::path::Path;

use dwindle::architecture;
use dwindle::llama::context::{BatchToken, Context, ContextOptions, FlashAttention};
use dwindle::llama::model::{LlamaError, Model, ModelOptions};
use dwindle_formats::gguf::{Array, TensorType, Value as Gguf};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::tempdir;

use crate::common::program::{dwindle, stdout};
use crate::common::record::Record;

/// Keys of the tokenizer's contents, which tests of tokenizers hold.
const CONTENTS: [&str; 3] = ["tokens", "token_type", "merges"];

/// A value as the record has it.
fn recorded(value: &Gguf) -> Value {
    match value {
        Gguf::String(text) => json!(text),
        Gguf::Bool(is) => json!(is),
        Gguf::F32(number) => json!(f64::from(*number)),
        Gguf::Array(Array::Bool(all)) => json!(all),
        Gguf::Array(Array::I32(all)) => json!(all),
        Gguf::Array(Array::U32(all)) => json!(all),
        Gguf::Array(Array::F32(all)) => {
            json!(all.iter().map(|v| f64::from(*v)).collect::<Vec<_>>())
        }
        other => json!(other.as_u64().unwrap_or_else(|| panic!("{other:?}"))),
    }
}

#[test]
fn keys_and_tensors_are_those_of_the_converter() {
    let dir = tempdir().unwrap();
    let mut wrong = Vec::new();
    for record in Record::all() {
        let folder = dir.path().join(&record.name);
        record.write(&folder);
        let (source, model) = match architecture::open(&folder) {
            Ok(opened) => opened,
            Err(e) => {
                wrong.push(format!("{}: {e}", record.name));
                continue;
            }
        };
        if record.tensors.is_empty() {
            continue;
        }
        let mut compare = |what: &str, found: Option<Value>, expected: Option<Value>| {
            if found != expected {
                let name = &record.name;
                wrong.push(format!(
                    "{name}: {what} is {found:?}, expected {expected:?}"
                ));
            }
        };
        let is_compared = |key: &str| {
            let content = key.strip_prefix("tokenizer.ggml.");
            // The converter leaves llama.cpp's default for some families, whatever the configuration says.
            let is_ours = key.ends_with(".rope.freq_base") && !record.keys.contains_key(key);
            (!key.starts_with("general.") || key == "general.architecture")
                && !content.is_some_and(|c| record.own_tokenizer || CONTENTS.contains(&c))
                && !is_ours
        };
        let keys = model.metadata.iter().map(|(key, _)| key);
        let mut keys: Vec<&str> = keys.chain(record.keys.keys().map(String::as_str)).collect();
        keys.retain(|key| is_compared(key));
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let found = model.metadata.get(key).map(recorded);
            compare(key, found, record.keys.get(key).cloned());
        }
        for (name, expected) in &record.tensors {
            let tensor = model.tensors.iter().find(|t| t.name == *name);
            let found = tensor.map(|tensor| {
                let values = architecture::values(tensor, source.as_ref(), 0..tensor.row_count());
                let bytes: &[u8] = &values
                    .unwrap()
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect::<Vec<_>>();
                let digest = hex(&Sha256::digest(bytes)[..8]);
                json!([tensor.shape, digest])
            });
            compare(name, found, Some(json!(expected)));
        }
        compare(
            "tensors",
            Some(json!(model.tensors.len())),
            Some(json!(record.tensors.len())),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn predictions_are_those_of_transformers() {
    let dir = tempdir().unwrap();
    let mut wrong = Vec::new();
    for (at, record) in Record::decoders().into_iter().enumerate() {
        // Some names turn on exceptions in llama.cpp's vocabularies.
        let folder = dir.path().join(format!("tiny-{at}"));
        let file = dir.path().join("x.gguf");
        record.write(&folder);
        let mut command = dwindle(["compress", "--preset", "f32"]);
        stdout(command.arg(&folder).arg("-o").arg(&file));
        let found = match predictions(&file, &record.text()) {
            Ok(found) => found,
            Err(e) => {
                wrong.push(format!("{}: {e}", record.name));
                continue;
            }
        };
        assert_eq!(found.len(), record.predictions.len());
        let apart = found
            .iter()
            .zip(&record.predictions)
            .map(|(a, b)| (a - b).abs());
        let most = apart.fold(0.0, f64::max);
        // Both compute in F32, in another order; llama.cpp looks GELU up in a table of F16.
        if most.is_nan() || most > 1e-2 {
            wrong.push(format!("{}: {most} apart", record.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Logarithms of the probabilities that a model gives each next token of a text.
fn predictions(file: &Path, text: &[i32]) -> Result<Vec<f64>, LlamaError> {
    let model = Model::load(file, &ModelOptions::default())?;
    let options = ContextOptions {
        ctx: text.len() as u32,
        batch: text.len() as u32,
        threads: Some(1),
        cache_type: TensorType::F32,
        flash_attention: FlashAttention::Off,
        ..ContextOptions::default()
    };
    let mut context = Context::new(&model, &options)?;
    let tokens = text.iter().zip(0..);
    let batch: Vec<BatchToken> = tokens
        .map(|(token, position)| BatchToken {
            token: *token,
            position,
            sequence: 0,
            logits: true,
        })
        .collect();
    context.decode(&batch)?;
    let logits = context.logits();
    let rows = logits.chunks(logits.len() / text.len());
    let all = rows.zip(&text[1..]);
    Ok(all
        .map(|(row, next)| {
            let largest = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f64 = row.iter().map(|v| f64::from(v - largest).exp()).sum();
            f64::from(row[*next as usize] - largest) - sum.ln()
        })
        .collect())
}
