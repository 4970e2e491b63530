//! Factorizations as a user runs them: every form of the container, written, checked, run.

use std::path::Path;

use dwindle_formats::gguf::TensorType;
use serde_json::Value;
use tempfile::tempdir;

use crate::common::program::{checkpoint, dwindle, fixture, says, stdout};
use crate::common::tiny::mixture;

fn calibrate(model: &Path, text: &Path, to: &Path) {
    let mut command = dwindle(["calibrate", "--chunks", "8", "--ctx", "64", "-t", "1"]);
    command.arg(model).arg("--text").arg(text);
    stdout(command.arg("-o").arg(to));
}

/// Compresses with one rule over f16, and gives what is said of the rule's tensors and the notes.
fn compress(model: &Path, stats: Option<&Path>, rule: &str, to: &Path) -> (Vec<Value>, String) {
    let recipe = to.with_extension("toml");
    std::fs::write(&recipe, format!("type = \"f16\"\n[[rule]]\n{rule}\n")).unwrap();
    let mut command = dwindle(["compress"]);
    command.arg(model).arg("--recipe").arg(&recipe);
    if let Some(stats) = stats {
        command.arg("--stats").arg(stats);
    }
    let output = command.arg("-o").arg(to).output().unwrap();
    let notes = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{rule}: {notes}");
    let listed = stdout(dwindle(["inspect", "--json"]).arg(to));
    let report: Value = serde_json::from_str(&listed).unwrap();
    let factored = report["tensors"].as_array().unwrap().iter();
    let dense = ["copy", "convert", "quantize"];
    let factored = factored.filter(|t| !dense.contains(&t["method"].as_str().unwrap()));
    (factored.cloned().collect(), notes)
}

/// That the file is whole, that llama.cpp runs it, and that its tensors are as near to the
/// checkpoint's as it says.
fn check(file: &Path, model: &Path, factored: &[Value], stacked: bool) {
    let mut command = dwindle(["verify", "--json"]);
    command.arg(file).arg("--against").arg(model);
    let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    let differences = report["differences"].as_array().unwrap();
    for tensor in factored {
        let found = differences
            .iter()
            .find(|d| d["name"] == tensor["name"])
            .unwrap()["relative_error"]
            .as_f64()
            .unwrap();
        let said = tensor["relative_error"].as_f64().unwrap();
        assert!(found > 0.0 && found < 1.5, "{tensor}: {found}");
        // What a stack lost is told for all its layers.
        assert!(
            stacked || (found / said - 1.0).abs() < 0.01,
            "{tensor}: {found}"
        );
    }
    stdout(dwindle(["run", "-n", "2", "-t", "1", "-p", "And"]).arg(file));
    let dense = file.with_extension("gguf");
    stdout(dwindle(["export"]).arg(file).arg("-o").arg(&dense));
    stdout(dwindle(["run", "-n", "2", "-t", "1", "-p", "And"]).arg(&dense));
}

#[test]
fn every_form_is_written_checked_and_run() {
    let dir = tempdir().unwrap();
    let stats = dir.path().join("stats.safetensors");
    calibrate(&checkpoint(), &fixture("kjv-calibration.txt"), &stats);
    let attention = "roles = [\"attn_q\", \"attn_k\", \"attn_v\"]\n";
    for (i, (rule, method)) in [
        ("method = \"svd\"\njoint = true\nkeep = 0.6", "svd"),
        ("method = \"tucker\"\nover = \"heads\"\nkeep = 0.5\ntype = \"f16\"", "tucker"),
        (
            "method = \"tucker\"\nover = \"layers\"\nstack = 4\nkeep = 0.5\ntype = \"f16\"\nall_ways = true",
            "tucker",
        ),
        ("method = \"cp\"\nover = \"layers\"\nrank = 8\ntype = \"f16\"", "cp"),
        ("method = \"tensor-train\"\nover = \"layers\"\nkeep = 0.4\ntype = \"f16\"", "tensor-train"),
        ("method = \"tensor-train\"\nmodes = 3\nkeep = 0.3\ntype = \"f16\"", "tensor-train"),
        ("method = \"sparse-low-rank\"\nsparsity = 0.6\nrank = 32", "sparse-low-rank"),
    ]
    .into_iter()
    .enumerate()
    {
        let file = dir.path().join(format!("{i}.dwn"));
        let rule = format!("{attention}{rule}");
        let (factored, notes) = compress(&checkpoint(), Some(&stats), &rule, &file);
        assert!(factored.len() > 3, "{rule}: {notes}");
        assert!(factored.iter().all(|t| t["method"] == method), "{rule}");
        check(&file, &checkpoint(), &factored, rule.contains("layers"));
    }
}

#[test]
fn a_plain_matrix_has_no_third_way_and_the_program_says_so() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("x.dwn");
    let rule = "roles = [\"attn_q\"]\nmethod = \"tucker\"\nkeep = 0.5";
    let (factored, notes) = compress(&checkpoint(), None, rule, &file);
    assert!(factored.iter().all(|t| t["method"] == "svd"));
    says(
        &notes,
        &["tucker became svd", "for a plain matrix tucker is svd"],
    );
}

#[test]
fn experts_are_calibrated_factored_and_run() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("mixture.gguf");
    mixture(TensorType::F32).write(&model);
    let stats = dir.path().join("stats.safetensors");
    calibrate(&model, &fixture("kjv-heldout.txt"), &stats);
    let experts = "roles = [\"ffn_gate_exps\", \"ffn_up_exps\", \"ffn_down_exps\"]\n";
    for (i, rule) in [
        "method = \"svd\"\nkeep = 0.5",
        "method = \"tucker\"\nkeep = 0.3\ntype = \"f16\"",
        "method = \"cp\"\nrank = 4\ntype = \"f16\"",
        "method = \"tensor-train\"\nkeep = 0.3\ntype = \"f16\"",
    ]
    .into_iter()
    .enumerate()
    {
        let file = dir.path().join(format!("{i}.dwn"));
        let rule = format!("{experts}{rule}");
        let (factored, notes) = compress(&model, Some(&stats), &rule, &file);
        assert_eq!(factored.len(), 6, "{rule}: {notes}");
        check(&file, &model, &factored, false);
    }
}
