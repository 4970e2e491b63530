//! Models and statistics at the edge of what can be compressed: a clear error or a safe result.

use std::path::{Path, PathBuf};

use dwindle_formats::gguf::TensorType;
use tempfile::{TempDir, tempdir};

use crate::common::program::{dwindle, fixture, listing, refusal, says, stdout};
use crate::common::tiny::{Tiny, another, tiny};

const RULES: [&str; 8] = [
    "method = \"svd\"\nkeep = 0.5",
    "method = \"svd\"\nenergy = 0.9",
    "method = \"tucker\"\nover = \"heads\"\nkeep = 0.5",
    "method = \"cp\"\nover = \"heads\"\nkeep = 0.5",
    "method = \"tensor-train\"\nover = \"heads\"\nkeep = 0.5",
    "method = \"wanda\"\nsparsity = 0.5",
    "method = \"sparsegpt\"\npattern = \"2:4\"",
    "method = \"sparse-low-rank\"\nsparsity = 0.5\nkeep = 0.8",
];

const WEIGHT: &str = "blk.1.attn_q.weight";

struct Case {
    dir: TempDir,
    model: PathBuf,
}

/// A model whose queries in the second layer all have this value, or their own.
fn case(mut model: Tiny, value: Option<f32>) -> Case {
    let place = model.layout.iter().position(|t| t.name == WEIGHT).unwrap();
    if let Some(value) = value {
        let data = &mut model.data[place];
        *data = value.to_le_bytes().repeat(data.len() / 4);
    }
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    model.write(&path);
    Case { dir, model: path }
}

impl Case {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn calibrate(&self, chunks: &str) -> assert_cmd::Command {
        let mut command = dwindle(["calibrate", "--ctx", "32", "--chunks", chunks]);
        command.arg(&self.model).arg("--text");
        command.arg(fixture("kjv-calibration.txt"));
        command.arg("-o").arg(self.path("stats.safetensors"));
        command
    }

    fn compress(&self, rule: &str, stats: &Path) -> assert_cmd::Command {
        let recipe = self.path("recipe.toml");
        let text = format!("type = \"f16\"\n[[rule]]\nroles = [\"attn_q\"]\n{rule}\n");
        std::fs::write(&recipe, text).unwrap();
        let mut command = dwindle(["compress"]);
        command.arg(&self.model).arg("--recipe").arg(recipe);
        command.arg("--stats").arg(stats);
        command.arg("-o").arg(self.path("out.dwn"));
        command
    }

    /// Every method gives a whole file that runs.
    fn every_method_works(&self, stats: &Path) {
        for rule in RULES {
            stdout(&mut self.compress(rule, stats));
            let out = self.path("out.dwn");
            stdout(
                dwindle(["verify"])
                    .arg(&out)
                    .arg("--against")
                    .arg(&self.model),
            );
            stdout(dwindle(["run", "-n", "2", "-t", "1", "-p", "ab"]).arg(&out));
        }
    }
}

#[test]
fn fewer_tokens_than_dimensions_are_safe() {
    let case = case(tiny(TensorType::F32), None);
    let stats = case.path("stats.safetensors");
    stdout(&mut case.calibrate("1"));
    case.every_method_works(&stats);
}

#[test]
fn a_matrix_of_zeros_is_safe() {
    let case = case(tiny(TensorType::F32), Some(0.0));
    let stats = case.path("stats.safetensors");
    stdout(&mut case.calibrate("8"));
    case.every_method_works(&stats);
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let whole = case(tiny(TensorType::F32), None);
    let stats = whole.path("stats.safetensors");
    stdout(&mut whole.calibrate("4"));
    for value in [f32::NAN, f32::INFINITY] {
        let case = case(tiny(TensorType::F32), Some(value));
        let before = listing(case.dir.path());
        // What reads the damaged layer's output is the first to notice.
        says(
            &refusal(&mut case.calibrate("4"), 3),
            &["blk.1.", "not finite"],
        );
        assert_eq!(listing(case.dir.path()), before);
        for rule in RULES {
            says(&refusal(&mut case.compress(rule, &stats), 3), &[WEIGHT]);
        }
        assert!(!case.path("out.dwn").exists());
    }
}

#[test]
fn statistics_of_another_model_are_refused() {
    let (one, other) = (
        case(tiny(TensorType::F32), None),
        case(another(TensorType::F32), None),
    );
    stdout(&mut one.calibrate("2"));
    let stats = one.path("stats.safetensors");
    for rule in RULES {
        says(
            &refusal(&mut other.compress(rule, &stats), 3),
            &["stats.safetensors", "another model"],
        );
    }
    let mut diagnose = dwindle(["diagnose"]);
    diagnose.arg(&other.model).arg("--stats").arg(&stats);
    says(&refusal(&mut diagnose, 3), &["another model"]);
}

#[test]
fn values_that_a_type_can_not_hold_are_refused_by_name() {
    const TOO_LARGE: [f32; 4] = [65520.0, -70000.0, f32::INFINITY, f32::NAN];
    let (dir, path) = (tempdir().unwrap(), "out.gguf");
    for (preset, values, advice) in [
        ("f16", &TOO_LARGE[..], "bf16"),
        ("bf16", &[f32::MAX, f32::NEG_INFINITY, f32::NAN][..], ""),
        ("q8_0", &[1e11, f32::NAN][..], "bf16"),
    ] {
        for value in values {
            let mut model = tiny(TensorType::F32);
            let place = model.layout.iter().position(|t| t.name == WEIGHT).unwrap();
            let at = 4 * (200 * 256 + 7);
            model.data[place][at..at + 4].copy_from_slice(&value.to_le_bytes());
            let file = dir.path().join("model.gguf");
            model.write(&file);
            let mut command = dwindle(["compress", "--preset", preset, "-o", path]);
            let sentence = refusal(command.arg(&file).current_dir(dir.path()), 3);
            says(&sentence, &[WEIGHT]);
            if value.is_finite() {
                says(&sentence, &[advice, "can't hold"]);
            } else {
                says(&sentence, &["no finite number"]);
            }
            says(&sentence, &[&format!("element {} is {value}", at / 4)]);
            assert_eq!(listing(dir.path()), ["model.gguf"], "{preset} {value}");
        }
    }
}

#[test]
fn the_largest_values_of_a_type_are_kept() {
    let dir = tempdir().unwrap();
    let mut model = tiny(TensorType::F32);
    let place = model.layout.iter().position(|t| t.name == WEIGHT).unwrap();
    model.data[place][..4].copy_from_slice(&65519.9f32.to_le_bytes());
    let file = dir.path().join("model.gguf");
    model.write(&file);
    let out = dir.path().join("out.gguf");
    let mut command = dwindle(["compress", "--preset", "f16", "-o"]);
    stdout(command.arg(&out).arg(&file));
    stdout(dwindle(["verify"]).arg(&out).arg("--against").arg(&file));
}
