//! `dwindle calibrate` as a user runs it.

use dwindle::statistics::{Identity, Likeness};
use serde_json::Value;
use tempfile::tempdir;

use crate::common::program::{checkpoint, compress, dwindle, fixture, refusal, says, stdout};

#[test]
fn a_checkpoint_and_its_files_have_the_same_identity() {
    let dir = tempdir().unwrap();
    let container = dir.path().join("f16.dwn");
    let stock = dir.path().join("f16.gguf");
    for file in [&container, &stock] {
        stdout(&mut compress("f16", file));
    }
    let models: Vec<Value> = [checkpoint(), container, stock]
        .iter()
        .map(|file| {
            let mut command = dwindle(["calibrate", "--chunks", "2", "--ctx", "32", "--json"]);
            command.args(["--threads", "1", "--memory", "64M"]);
            command
                .arg(file)
                .arg("--text")
                .arg(fixture("kjv-heldout.txt"));
            command
                .arg("--imatrix")
                .arg(dir.path().join("imatrix.gguf"));
            let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
            assert_eq!(report["provenance"]["tokens"], 64);
            report["provenance"]["model"].clone()
        })
        .collect();
    let models: Vec<Identity> = models
        .into_iter()
        .map(|model| serde_json::from_value(model).unwrap())
        .collect();
    for other in &models[1..] {
        assert_eq!(models[0].likeness(other), Ok(Likeness::Weights));
        assert_eq!(models[0].name, other.name);
    }
    // Files of older versions say nothing of weights.
    let older = Identity {
        weights: Default::default(),
        ..models[0].clone()
    };
    assert_eq!(older.likeness(&models[0]), Ok(Likeness::NormsOnly));
}

#[test]
fn a_table_says_what_was_measured() {
    let dir = tempdir().unwrap();
    let mut command = dwindle(["calibrate", "--tokens", "100", "--ctx", "64", "-t", "1"]);
    command
        .arg(checkpoint())
        .arg("--text")
        .arg(fixture("kjv-heldout.txt"));
    let output = dir.path().join("s.safetensors");
    command.arg("-o").arg(&output);
    let table = stdout(&mut command);
    says(
        &table,
        &[
            "ffn_down",
            "attn_output",
            "128 tokens in 2 chunks of 64",
            "s.safetensors: ",
        ],
    );
    assert!(output.exists());
}

#[test]
fn what_can_not_be_measured_is_refused() {
    let dir = tempdir().unwrap();
    let text = dir.path().join("short.txt");
    std::fs::write(&text, "In the beginning").unwrap();
    let output = dir.path().join("s.safetensors");
    let command = |args: &[&str]| {
        let mut command = dwindle(["calibrate", "--threads", "1"]);
        command
            .arg(checkpoint())
            .arg("--text")
            .arg(&text)
            .args(args);
        command
    };
    let out = output.to_str().unwrap();
    says(
        &refusal(&mut command(&["-o", out]), 3),
        &["expected at least one context of 512", "`--ctx`"],
    );
    says(
        &refusal(&mut command(&["-o", out, "--chunks", "0"]), 2),
        &["no tokens"],
    );
    assert_eq!(command(&[]).output().unwrap().status.code(), Some(2));
    std::fs::write(&text, [0xff, 0xfe]).unwrap();
    says(
        &refusal(&mut command(&["-o", out]), 3),
        &["short.txt", "not valid UTF-8"],
    );
    assert!(!output.exists());
}
