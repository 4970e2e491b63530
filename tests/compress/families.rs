//! Every family to a size: its blocks are run one by one, its layers fitted, and what comes out is measured.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::common::program::{dwindle, fixture, refusal, says, stdout};
use crate::common::record::Record;

/// Families whose blocks can't be run one by one.
const WHOLE: [&str; 1] = ["bloom"];

/// `compress` of a folder to a size in these types, on a short text.
fn to_size(model: &Path, output: &Path, size: &str, types: &str) -> assert_cmd::Command {
    let mut command = dwindle([
        "compress", "--json", "--effort", "fast", "--size", size, "-t", "1",
    ]);
    command.args(["--types", types]).arg(model);
    let dir = output.parent().unwrap();
    command.arg("--text").arg(dir.join("text.txt"));
    command.arg("--workspace").arg(dir.join("workspace"));
    command.arg("-o").arg(output);
    command
}

/// The divergence that was measured of a file.
fn measured(command: &mut assert_cmd::Command) -> f64 {
    let report: Value = serde_json::from_str(&stdout(command)).unwrap();
    report["target"]["measured_kld"].as_f64().unwrap()
}

#[test]
fn every_family_comes_to_a_size() {
    let dir = tempdir().unwrap();
    let text = std::fs::read_to_string(fixture("kjv-calibration.txt")).unwrap();
    std::fs::write(dir.path().join("text.txt"), &text[..20_000]).unwrap();
    let mut wrong = Vec::new();
    // They share a workspace. Several have the same weights, and differ in what is done with them.
    for (at, record) in Record::decoders().into_iter().enumerate() {
        // Some names turn on exceptions in llama.cpp's vocabularies.
        let model = dir.path().join(format!("tiny-{at}"));
        let output = dir.path().join("x.gguf");
        record.write(&model);
        if WHOLE.contains(&record.name.as_str()) {
            let mut command = to_size(&model, &output, "50%", "q8_0");
            says(&refusal(&mut command, 3), &["can't be run one by one"]);
            continue;
        }
        let kld = measured(&mut to_size(&model, &output, "60%", "q8_0,q4_0"));
        if !(1e-6..1.0).contains(&kld) {
            wrong.push(format!("{}: {kld}", record.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
