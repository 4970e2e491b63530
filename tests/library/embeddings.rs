//! Encoders: what is refused, and their embeddings beside those of their records.

use dwindle::eval::cosine;
use dwindle::llama::embedding::{Pooling, embed};
use dwindle::llama::error::LlamaError;
use dwindle::llama::model::{Model, ModelOptions};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::common::folder::{open, refused, says};
use crate::common::program::{dwindle, stdout};
use crate::common::record::Record;

#[test]
fn embeddings_are_those_of_transformers() {
    let dir = tempdir().unwrap();
    let mut wrong = Vec::new();
    for record in Record::encoders() {
        let (folder, file) = (dir.path().join(&record.name), dir.path().join("x.gguf"));
        record.write(&folder);
        let mut command = dwindle(["compress", "--preset", "f32"]);
        stdout(command.arg(&folder).arg("-o").arg(&file));
        let model = Model::load(&file, &ModelOptions::default()).unwrap();
        assert!(model.encodes() && model.embeds());
        let text = record.text();
        // The texts beside it change nothing.
        let texts = [text[..9].to_vec(), text.clone(), text[..1].to_vec()];
        let found = embed(&model, &texts, None, Some(1)).unwrap();
        let expected: Vec<f32> = record.embedding.iter().map(|v| *v as f32).collect();
        // transformers has GELU as erf gives it; llama.cpp the tangent's, from a table of F16.
        let apart = 1.0 - cosine(&found[1], &expected);
        if apart.is_nan() || apart > 1e-5 {
            wrong.push(format!("{}: {apart} from the same direction", record.name));
        }
        let length: f32 = found[1].iter().map(|v| v * v).sum();
        assert!((length - 1.0).abs() < 1e-5);
        let first = embed(&model, &texts[1..2], Some(Pooling::Cls), Some(1)).unwrap();
        assert!(cosine(&first[0], &found[1]) < 1.0 - 1e-4);
        let refused = embed(&model, &[vec![5; 513]], None, Some(1)).unwrap_err();
        assert!(
            matches!(
                refused,
                LlamaError::TextLength {
                    tokens: 513,
                    limit: 512
                }
            ),
            "{refused}"
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn encoders_are_held_against_what_llama_cpp_takes_for_granted() {
    let mut roberta = Record::of("roberta").folder();
    roberta.config["pad_token_id"] = json!(600);
    says(&refused(&roberta), &["pad_token_id", "`600`", "of 514"]);
    let mut roberta = Record::of("roberta").folder();
    roberta.add("embeddings.position_embeddings.bias", &[514]);
    says(&refused(&roberta), &["pad_token_id", "of 0"]);

    let mut bert = Record::of("bert").folder();
    bert.config["hidden_act"] = json!("relu");
    says(
        &refused(&bert),
        &["hidden_act", "relu", "takes for granted"],
    );
    // Names of older checkpoints.
    let mut bert = Record::of("bert").folder();
    for (now, then) in [("weight", "gamma"), ("bias", "beta")] {
        let name = |ending: &str| format!("bert.embeddings.LayerNorm.{ending}");
        let tensor = bert.tensors.remove(&name(now)).unwrap();
        bert.tensors.insert(name(then), tensor);
    }
    let (_, model) = open(&bert);
    assert!(model.by_name().contains_key("token_embd_norm.bias"));
    let bytes = bert.files[0].1.clone();
    let mut json: Value = serde_json::from_slice(&bytes).unwrap();
    json["model"]["continuing_subword_prefix"] = json!("@@");
    bert.files[0].1 = json.to_string().into_bytes();
    says(
        &refused(&bert),
        &["continuing_subword_prefix", "`@@`", "`##`"],
    );

    let mut xlm = Record::of("xlm-roberta").folder();
    let mut json: Value = serde_json::from_slice(&xlm.files[0].1).unwrap();
    json["model"]["vocab"][7] = json!(["a"]);
    xlm.files[0].1 = json.to_string().into_bytes();
    says(&refused(&xlm), &["piece 7"]);
}
