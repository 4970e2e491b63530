//! Checkpoints that are refused, and what the sentence says.

use dwindle::architecture;
use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::common::folder;
use crate::common::folder::{DENSE, Folder, HIDDEN, SHARDS, error, open, refused, says};

#[test]
fn unsupported_models_are_refused() {
    let folder = || Folder::new("LlamaForCausalLM", &DENSE);
    let mut f = folder();
    f.config["architectures"] = json!(["MambaForCausalLM"]);
    says(
        &refused(&f),
        &[
            "`MambaForCausalLM`",
            "`LlamaForCausalLM`",
            "`GraniteForCausalLM`",
        ],
    );
    let mut f = folder();
    f.config["architectures"] = Value::Null;
    says(&refused(&f), &["names no architecture"]);
    let mut f = folder();
    f.config["quantization_config"] = json!({"quant_method": "aqlm"});
    says(
        &refused(&f),
        &["(aqlm, by `config.json`)", "bitsandbytes", "original"],
    );
    let mut f = folder();
    f.config["hidden_size"] = json!("wide");
    says(&refused(&f), &["`hidden_size`", "wide"]);
    let mut f = folder();
    f.config["tie_word_embeddings"] = json!(false);
    says(&refused(&f), &["`lm_head.weight` is missing"]);
    let mut f = folder();
    f.config["num_hidden_layers"] = json!(4_000_000_000u32);
    says(
        &refused(&f),
        &["`model.layers.2.input_layernorm.weight` is missing"],
    );
    let mut f = folder();
    f.config["vocab_size"] = json!(4_000_000_000u32);
    says(
        &refused(&f),
        &["`model.embed_tokens.weight`", "[264, 8]", "[4000000000, 8]"],
    );
    let mut f = folder();
    f.tensors.remove("model.layers.1.mlp.up_proj.weight");
    says(
        &refused(&f),
        &["`model.layers.1.mlp.up_proj.weight` is missing"],
    );
    let mut f = folder();
    f.add("model.layers.0.self_attn.rotary_emb.inv_freq", &[2]);
    open(&f);
    f.add("model.layers.0.adapter.weight", &[2]);
    says(
        &refused(&f),
        &["`model.layers.0.adapter.weight` has no place", "`llama`"],
    );
    let mut f = folder();
    if let Some(t) = f.tensors.get_mut("model.norm.weight") {
        t.dtype = Dtype::I16;
    }
    says(&refused(&f), &["`model.norm.weight`", "I16", "BF16"]);
}

#[test]
fn unknown_tokenizers_are_refused() {
    let mut f = Folder::new("LlamaForCausalLM", &DENSE);
    let split = json!({"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": false});
    f.file("tokenizer.json", folder::tokenizer(split).to_string());
    says(
        &refused(&f),
        &["pre-tokenizer", "Split by `x+`", "structure of `gpt-2`"],
    );
    f.file("tokenizer.json", "{");
    says(&refused(&f), &["tokenizer.json` can't be read as JSON"]);
    let mut wordpiece = folder::tokenizer(folder::gpt2());
    wordpiece["model"]["type"] = json!("WordPiece");
    f.file("tokenizer.json", wordpiece.to_string());
    says(&refused(&f), &["`WordPiece`"]);
    f.files.clear();
    says(&refused(&f), &["no tokenizer", "`tokenizer.json`"]);
    let mut f = Folder::new("LlamaForCausalLM", &DENSE);
    f.config["vocab_size"] = json!(258);
    f.add("model.embed_tokens.weight", &[258, HIDDEN]);
    says(&refused(&f), &["expected one below `vocab_size` 258"]);
}

#[test]
fn shards_must_agree_with_their_index() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let folder = Folder::new("LlamaForCausalLM", &DENSE);
    let second = |name: &str| name.starts_with("model.layers.1");
    folder.write_sharded(path, second);
    let (_, model) = architecture::open(path).unwrap();
    let names: Vec<&str> = model.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names[..2], ["token_embd.weight", "blk.0.attn_norm.weight"]);
    assert_eq!(names[10], "output_norm.weight");

    let index = path.join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(
        &index,
        text.replace("model.norm.weight", "model.other.weight"),
    )
    .unwrap();
    says(&error(path), &["`model.norm.weight`", "does not list"]);
    std::fs::write(&index, text.replace("00002-of-00002", "../00002")).unwrap();
    says(&error(path), &["without folders"]);
    std::fs::write(&index, "{}").unwrap();
    says(&error(path), &["`weight_map`"]);
    std::fs::write(&index, &text).unwrap();

    let shard = std::fs::read(path.join(SHARDS[1])).unwrap();
    std::fs::write(path.join(SHARDS[1]), &shard[..shard.len() - 1]).unwrap();
    says(&error(path), &[SHARDS[1], "truncated"]);
    std::fs::remove_file(path.join(SHARDS[1])).unwrap();
    says(&error(path), &[SHARDS[1], "1 of 2 shards"]);
    std::fs::remove_file(&index).unwrap();
    says(&error(path), &[SHARDS[1], "missing"]);
}

#[test]
fn damaged_folders_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    says(&error(path), &["no `config.json`"]);
    says(&error(&path.join("nothing here")), &["neither"]);
    let folder = Folder::new("LlamaForCausalLM", &DENSE);
    folder.write(path);
    let weights = path.join("model.safetensors");
    says(&error(&weights), &["file of weights lacks configuration"]);
    let bytes = std::fs::read(&weights).unwrap();
    // Whatever a damaged header says, it is refused or read, never a panic.
    for at in 0..200 {
        for byte in [0u8, b'"', b'9', 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = byte;
            std::fs::write(&weights, damaged).unwrap();
            let _ = architecture::open(path);
        }
    }
    for len in [0, 4, 8, 100, bytes.len() - 1] {
        std::fs::write(&weights, &bytes[..len]).unwrap();
        says(&error(path), &["model.safetensors"]);
    }
    std::fs::remove_file(&weights).unwrap();
    says(&error(path), &["no weights"]);
    std::fs::write(path.join("pytorch_model.bin"), b"x").unwrap();
    says(
        &error(path),
        &["pytorch_model.bin", "no dictionary of tensors"],
    );
    std::fs::write(path.join("config.json"), b"[]").unwrap();
    says(&error(path), &["config.json", "expected an object"]);
}
