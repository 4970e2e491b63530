//! Compressing the fixture: files that verify, lose what they may and nothing else, and are the
//! same bytes every time.

use std::path::{Path, PathBuf};

use dwindle_formats::gguf::read_header;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::common::program::{checkpoint, compress, dwindle, listing, refusal, says, stdout};

/// The fixture's file for a preset, in a folder of its own.
fn made(preset: &str, extension: &str) -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let path = dir.path().join(format!("model.{extension}"));
    stdout(&mut compress(preset, &path));
    (dir, path)
}

fn json(command: &mut assert_cmd::Command) -> Value {
    serde_json::from_str(&stdout(command.arg("--json"))).unwrap()
}

fn inspect(path: &Path) -> Value {
    json(dwindle(["inspect"]).arg(path))
}

/// Name and bytes of each tensor of a GGUF file.
fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let header = read_header(&bytes).unwrap();
    let of = |t| bytes[header.data_range(t)].to_vec();
    let list = header.tensors.iter();
    list.map(|t| (t.name.clone(), of(t))).collect()
}

#[test]
fn every_preset_gives_a_file_that_verifies_and_lists_its_tensors() {
    for (preset, extension, kind, bits) in [
        ("f16", "gguf", "GGUF with checksums", 16.0..16.1),
        ("bf16", "gguf", "GGUF with checksums", 16.0..16.1),
        ("source", "gguf", "GGUF with checksums", 16.0..16.1),
        ("q8_0", "gguf", "GGUF with checksums", 8.5..8.6),
        ("q4_k_m", "gguf", "GGUF with checksums", 4.5..6.0),
        ("k-proj", "dwn", "compressed container", 9.0..12.0),
    ] {
        let (dir, path) = made(preset, extension);
        assert_eq!(listing(dir.path()).len(), 1, "nothing beside the output");

        let verified = stdout(dwindle(["verify"]).arg(&path));
        says(&verified, &["all checksums hold", "38 tensors"]);
        let report = json(dwindle(["verify"]).arg(&path));
        assert_eq!(report["damage"], Value::Array(Vec::new()));
        assert_eq!(report["bytes"], std::fs::metadata(&path).unwrap().len());

        let report = inspect(&path);
        assert_eq!(report["kind"], kind);
        assert_eq!(report["architecture"], "llama");
        assert_eq!(report["parameters"], 3_410_176);
        assert_eq!(report["tensors"].as_array().unwrap().len(), 38);
        let found = report["bits_per_weight"].as_f64().unwrap();
        assert!(bits.contains(&found), "{preset}: {found} bits per weight");
        says(
            &stdout(dwindle(["inspect"]).arg(&path)),
            &["blk.3.ffn_down.weight", kind, "3410176 parameters"],
        );
    }
}

#[test]
fn verify_against_the_checkpoint_measures_what_was_lost() {
    let worst = |preset: &str, extension: &str| -> f64 {
        let (_dir, path) = made(preset, extension);
        let mut command = dwindle(["verify"]);
        command.arg(&path).arg("--against").arg(checkpoint());
        let report = json(&mut command);
        let differences = report["differences"].as_array().unwrap();
        assert_eq!(differences.len(), 38);
        let errors = differences.iter().map(|d| d["relative_error"].as_f64());
        errors.map(Option::unwrap).fold(0.0, f64::max)
    };
    assert_eq!(worst("source", "dwn"), 0.0);
    assert!((1e-3..2e-2).contains(&worst("q8_0", "gguf")));
    assert!((1e-2..0.25).contains(&worst("k-proj", "dwn")));
}

#[test]
fn verify_takes_several_files_and_names_the_one_that_is_damaged() {
    let (_first, good) = made("q8_0", "gguf");
    let (_second, bad) = made("q4_k_m", "gguf");
    let mut bytes = std::fs::read(&bad).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&bad, bytes).unwrap();
    let both = stdout(dwindle(["verify"]).arg(&good).arg(&good));
    assert_eq!(both.matches("all checksums hold").count(), 2);
    let output = dwindle(["verify"]).arg(&bad).arg(&good).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    says(&said, &["all checksums hold"]);
    let name = bad.display().to_string();
    says(
        &String::from_utf8(output.stderr).unwrap(),
        &[name.as_str(), "damaged"],
    );
}

#[test]
fn inspect_lists_a_checkpoint() {
    let report = inspect(&checkpoint());
    assert_eq!(report["kind"], "checkpoint");
    assert_eq!(report["architecture"], "llama");
    assert_eq!(report["parameters"], 3_410_176);
    assert_eq!(report["bytes"], 2 * 3_410_176);
    assert_eq!(report["tensors"][0]["ty"], "BF16");
}

#[test]
fn containers_lose_nothing_and_save_what_they_should() {
    for (preset, at_most) in [("source", 0.70), ("bf16", 0.70), ("f16", 0.85)] {
        let (_stock_dir, stock) = made(preset, "gguf");
        let (dir, container) = made(preset, "dwn");
        let exported = dir.path().join("exported.gguf");
        let mut export = dwindle(["export"]);
        stdout(export.arg(&container).arg("--output").arg(&exported));

        assert!(
            tensors(&exported) == tensors(&stock),
            "{preset}: other bytes"
        );
        says(
            &stdout(dwindle(["verify"]).arg(&exported)),
            &["all checksums hold"],
        );
        let bytes = |path| inspect(path)["tensor_bytes"].as_f64().unwrap();
        let share = bytes(&container) / bytes(&stock);
        assert!(share <= at_most, "{preset}: {share} of the payload");
    }
}

#[test]
fn exported_factors_are_dense_matrices() {
    let (dir, container) = made("k-proj", "dwn");
    let exported = dir.path().join("exported.gguf");
    let mut export = dwindle(["export"]);
    let report = json(export.arg(&container).arg("--output").arg(&exported));
    assert_eq!(report["bytes"], std::fs::metadata(&exported).unwrap().len());
    let report = inspect(&exported);
    let k = (report["tensors"].as_array().unwrap().iter())
        .find(|t| t["name"] == "blk.1.attn_k.weight")
        .unwrap();
    assert_eq!(k["ty"], "F16");
    assert_eq!(k["shape"], serde_json::json!([256, 128]));
}

#[test]
fn threads_and_memory_do_not_change_a_byte() {
    for (preset, extension) in [("q4_k_m", "gguf"), ("bf16", "dwn"), ("k-proj", "dwn")] {
        let dir = tempdir().unwrap();
        let mut files = Vec::new();
        for (threads, memory) in [("1", "1G"), ("2", "1M"), ("2", "1G"), ("5", "1K")] {
            let path = dir.path().join(format!("{threads}-{memory}.{extension}"));
            let mut command = compress(preset, &path);
            stdout(command.args(["--threads", threads, "--memory", memory]));
            files.push(std::fs::read(path).unwrap());
        }
        assert!(files.iter().all(|f| *f == files[0]), "{preset}");
    }
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let table = stdout(compress("q4_k_m", &path).arg("--dry-run"));
    says(&table, &["blk.0.attn_v.weight", "Q6_K", "38 tensors"]);
    assert!(listing(dir.path()).is_empty());

    let planned = json(compress("q4_k_m", &path).arg("--dry-run"));
    let written = json(&mut compress("q4_k_m", &path));
    let bytes = |t: &Value| t["bytes"].as_u64().unwrap();
    let sum: u64 = (written["tensors"].as_array().unwrap().iter())
        .map(bytes)
        .sum();
    assert_eq!(bytes(&planned), sum);
    assert_eq!(bytes(&written), std::fs::metadata(&path).unwrap().len());
}

#[test]
fn a_gguf_file_with_factors_is_refused_with_two_ways_out() {
    let dir = tempdir().unwrap();
    let sentence = refusal(&mut compress("k-proj", &dir.path().join("model.gguf")), 2);
    says(
        &sentence,
        &[
            "4 tensors",
            "`blk.0.attn_k.weight`",
            "`.dwn`",
            "export",
            "recipe",
        ],
    );
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn a_recipe_decides_tensor_by_tensor() {
    let dir = tempdir().unwrap();
    let recipe = dir.path().join("recipe.toml");
    std::fs::write(
        &recipe,
        "type = \"q8_0\"\n\
         [[rule]]\nroles = [\"ffn_down\"]\nlayers = [\"-1\"]\ntype = \"f16\"\n\
         [[rule]]\nname = \"blk.0.attn_q.weight\"\nmethod = \"svd\"\nrank = 32\n",
    )
    .unwrap();
    let path = dir.path().join("model.dwn");
    let mut command = dwindle(["compress"]);
    command.arg(checkpoint()).arg("--recipe").arg(&recipe);
    stdout(command.arg("--output").arg(&path));
    let report = inspect(&path);
    let found = |name: &str| {
        let tensor = (report["tensors"].as_array().unwrap().iter())
            .find(|t| t["name"] == name)
            .unwrap();
        (tensor["ty"].clone(), tensor["ranks"].clone())
    };
    assert_eq!(found("blk.3.ffn_down.weight"), ("F16".into(), json!([])));
    assert_eq!(found("blk.2.ffn_down.weight"), ("Q8_0".into(), json!([])));
    assert_eq!(found("blk.0.attn_q.weight"), ("Q8_0".into(), json!([32])));
}

#[test]
fn a_gguf_file_is_a_checkpoint_too() {
    let (dir, first) = made("source", "gguf");
    let again = dir.path().join("again.gguf");
    let mut command = dwindle(["compress", "--preset", "source"]);
    stdout(command.arg(&first).arg("--output").arg(&again));
    assert!(tensors(&first) == tensors(&again));

    let mut command = dwindle(["compress", "--preset", "source"]);
    command.arg(&first).arg("--output").arg(&first);
    says(
        &refusal(&mut command, 2),
        &["is the checkpoint, which would be overwritten"],
    );
    says(
        &stdout(dwindle(["verify"]).arg(&first)),
        &["all checksums hold"],
    );
}
