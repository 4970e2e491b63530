//! Every family that is converted, with factors in all its matrices: executed, they give what their
//! product gives, under every command that runs a model.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::common::program::{dwindle, fixture, stdout};
use crate::common::record::Record;

const RECIPE: &str = "type = \"f32\"\n[[rule]]\ntype = \"f32\"\nroles = [\"attn_q\", \"attn_k\", \"attn_v\", \
     \"attn_output\", \"ffn_gate\", \"ffn_up\", \"ffn_down\", \"ffn_gate_exps\", \"ffn_up_exps\", \
     \"ffn_down_exps\", \"attn_qkv\", \"ffn_gate_shexp\", \"ffn_up_shexp\", \"ffn_down_shexp\", \
     \"token_embd\", \"output\"]\nmethod = \"svd\"\nrank = 2\n";

fn evaluation(file: &Path, options: &[&str]) -> (f64, f64) {
    let mut command = dwindle(["eval", "--json", "--ctx", "64", "--chunks", "4", "-t", "1"]);
    command.args(options).arg(file);
    let text = fixture("kjv-heldout.txt");
    let report: Value = serde_json::from_str(&stdout(command.arg("--text").arg(text))).unwrap();
    let value = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
    (
        value("/perplexity/perplexity/value").unwrap(),
        value("/divergence/kld/value").unwrap_or(0.0),
    )
}

#[test]
fn every_family_runs_with_factors_everywhere() {
    let dir = tempdir().unwrap();
    let recipe = dir.path().join("recipe.toml");
    std::fs::write(&recipe, RECIPE).unwrap();
    for (at, record) in Record::decoders().into_iter().enumerate() {
        let name = &record.name;
        // Some names turn on exceptions in llama.cpp's vocabularies.
        let (model, file) = (
            dir.path().join(format!("tiny-{at}")),
            dir.path().join("x.dwn"),
        );
        record.write(&model);
        let mut command = dwindle(["compress"]);
        command.arg(&model).arg("--recipe").arg(&recipe);
        stdout(command.arg("-o").arg(&file));
        let listed = stdout(dwindle(["inspect", "--json"]).arg(&file));
        let report: Value = serde_json::from_str(&listed).unwrap();
        let tensors = report["tensors"].as_array().unwrap().iter();
        let factored = tensors.filter(|t| t["method"] == "svd").count();
        assert!(factored >= 10, "{name}: {factored}");

        let (executed, _) = evaluation(&file, &[]);
        let (product, _) = evaluation(&file, &["--multiplied-out"]);
        assert!(
            (executed / product - 1.0).abs() < 2e-2,
            "{name}: {executed} {product}"
        );
        stdout(dwindle(["run", "-n", "4", "-t", "1", "-p", "the"]).arg(&file));
        let stats = dir.path().join("stats.safetensors");
        let mut command = dwindle(["calibrate", "--chunks", "2", "--ctx", "32", "-t", "1"]);
        command
            .arg(&file)
            .arg("--text")
            .arg(fixture("kjv-heldout.txt"));
        stdout(command.arg("-o").arg(&stats));
        std::fs::remove_file(&stats).unwrap();
        let mut command = dwindle(["bench", "-p", "16", "-n", "4", "-r", "1", "-t", "1"]);
        stdout(command.arg(&file));
    }
}
