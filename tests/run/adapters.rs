//! LoRA adapters of PEFT: as files beside a model, and merged into it.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::common::program::{dwindle, fixture, refusal, says, stdout};

const RANK: usize = 4;

/// The modules of the fixture's model that are changed, with their inputs and outputs.
const MODULES: [(&str, usize, usize); 3] = [
    ("self_attn.q_proj", 256, 256),
    ("self_attn.v_proj", 256, 128),
    ("mlp.down_proj", 768, 256),
];

/// Numbers about zero that follow from a seed.
fn numbers(seed: usize, count: usize) -> Vec<u8> {
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 2003.0 - 0.5;
    (0..count)
        .flat_map(|i| (number(i) * 0.1).to_le_bytes())
        .collect()
}

/// Writes an adapter of the fixture's model, with more tensors and other settings where these are given.
fn write(dir: &Path, settings: Value, more: &[&str]) {
    std::fs::create_dir_all(dir).unwrap();
    let mut config = json!({
        "peft_type": "LORA",
        "lora_alpha": 16,
        "base_model_name_or_path": fixture("kjv-llama"),
    });
    let own = settings.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(own);
    std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    let mut tensors = Vec::new();
    for layer in 0..4 {
        for (at, (module, inputs, outputs)) in MODULES.into_iter().enumerate() {
            let name = |half: &str| {
                format!("base_model.model.model.layers.{layer}.{module}.{half}.weight")
            };
            let seed = 10 * layer + at;
            tensors.push((
                name("lora_A"),
                vec![RANK, inputs],
                numbers(seed, RANK * inputs),
            ));
            tensors.push((
                name("lora_B"),
                vec![outputs, RANK],
                numbers(seed + 5, RANK * outputs),
            ));
        }
    }
    for name in more {
        tensors.push((name.to_string(), vec![1, 4], numbers(1, 4)));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (
            name.clone(),
            TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
        )
    });
    let file = dir.join("adapter_model.safetensors");
    safetensors::serialize_to_file(views, None, &file).unwrap();
}

/// The perplexity of a file, with an adapter beside it or not.
fn perplexity(file: &Path, adapter: Option<&Path>) -> f64 {
    let mut command = dwindle(["eval", "--json", "--chunks", "2", "-t", "1"]);
    command
        .arg(file)
        .arg("--text")
        .arg(fixture("kjv-heldout.txt"));
    if let Some(adapter) = adapter {
        command.arg("--lora").arg(adapter);
    }
    let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    report["perplexity"]["perplexity"]["value"]
        .as_f64()
        .unwrap()
}

fn compress(merge: Option<&Path>, output: &Path) -> assert_cmd::Command {
    let mut command = dwindle(["compress", "--preset", "f32"]);
    command.arg(fixture("kjv-llama")).arg("-o").arg(output);
    if let Some(adapter) = merge {
        command.arg("--merge").arg(adapter);
    }
    command
}

fn convert(adapter: &Path, output: &Path) -> assert_cmd::Command {
    let mut command = dwindle(["adapter"]);
    command.arg(adapter).arg("-o").arg(output);
    command
}

/// llama.cpp multiplies by the thin matrices while it runs; merged, the weights are others.
#[test]
fn an_adapter_beside_a_model_and_merged_into_it_give_the_same() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    stdout(&mut compress(None, &at("plain.gguf")));
    let plain = perplexity(&at("plain.gguf"), None);
    for settings in [
        json!({}),
        json!({ "use_rslora": true, "alpha_pattern": { "q_proj": 2, "^model.layers.0.mlp.down_proj": 9 } }),
    ] {
        write(&at("adapter"), settings, &[]);
        let said = stdout(&mut convert(&at("adapter"), &at("adapter.gguf")));
        assert!(said.contains("changes 12 weights"), "{said}");
        stdout(&mut compress(Some(&at("adapter")), &at("merged.gguf")));
        let beside = perplexity(&at("plain.gguf"), Some(&at("adapter.gguf")));
        let merged = perplexity(&at("merged.gguf"), None);
        assert!((beside - merged).abs() < 2e-4 * plain, "{beside} {merged}");
        assert!((merged - plain).abs() > 2e-3 * plain, "{merged} {plain}");
    }
}

#[test]
fn what_is_no_adapter_of_the_model_is_refused() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let output = at("x.gguf");
    let sentence = refusal(&mut convert(dir.path(), &output), 3);
    says(&sentence, &["is no adapter", "adapter_config.json"]);
    for (settings, more, expected) in [
        (json!({ "peft_type": "IA3" }), vec![], "of type IA3"),
        (json!({ "use_dora": true }), vec![], "DoRA"),
        (
            json!({}),
            vec!["base_model.model.lm_head.weight"],
            "`base_model.model.lm_head.weight`",
        ),
        (
            json!({}),
            vec!["base_model.model.x.lora_A.weight"],
            "one of two matrices of `x.weight`",
        ),
    ] {
        write(&at("adapter"), settings, &more);
        says(
            &refusal(&mut convert(&at("adapter"), &output), 3),
            &[expected],
        );
        says(
            &refusal(&mut compress(Some(&at("adapter")), &output), 3),
            &[expected],
        );
    }
    let pair = [
        "base_model.model.x.lora_A.weight",
        "base_model.model.x.lora_B.weight",
    ];
    write(&at("adapter"), json!({}), &pair);
    let sentence = refusal(&mut convert(&at("adapter"), &output), 3);
    says(&sentence, &["can't be multiplied"]);
    write(
        &at("adapter"),
        json!({ "base_model_name_or_path": null }),
        &[],
    );
    says(
        &refusal(&mut convert(&at("adapter"), &output), 3),
        &["--base"],
    );
    assert!(!output.exists());
}

#[test]
fn an_adapter_is_no_output() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(&at("adapter"), json!({}), &[]);
    let weights = at("adapter").join("adapter_model.safetensors");
    let before = std::fs::read(&weights).unwrap();
    refusal(&mut convert(&at("adapter"), &weights), 2);
    refusal(
        &mut compress(
            Some(&at("adapter")),
            &at("adapter").join("adapter_model.safetensors"),
        ),
        2,
    );
    assert_eq!(std::fs::read(&weights).unwrap(), before);
}
