//! `dwindle diagnose` as a user runs it, and what `compress` makes of it.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use dwindle_formats::container::Container;
use dwindle_formats::gguf::TensorType;
use serde_json::Value;
use tempfile::tempdir;

use crate::common::program::{
    checkpoint, compress, dwindle, fixture, listing, refusal, says, stdout,
};
use crate::common::tiny::{mixture, tiny};

/// The fixture's statistics and its diagnosis, made once for all tests.
struct Known {
    stats: PathBuf,
    diagnosis: PathBuf,
}

fn calibrate(model: &Path, to: &Path) {
    let mut command = dwindle(["calibrate", "--chunks", "8"]);
    command.args(["--ctx", "256"]).arg(model);
    command
        .arg("--text")
        .arg(fixture("kjv-calibration.txt"))
        .arg("-o")
        .arg(to);
    stdout(&mut command);
}

fn diagnose(model: &Path, stats: &Path) -> assert_cmd::Command {
    let mut command = dwindle(["diagnose", "--ctx", "64"]);
    command.arg(model).arg("--stats").arg(stats);
    command
}

fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(measure)
}

fn measure() -> Known {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let stats = dir.join("diagnosing.safetensors");
    let diagnosis = dir.join("diagnosing.json");
    calibrate(&checkpoint(), &stats);
    let mut command = diagnose(&checkpoint(), &stats);
    command.arg("--text").arg(fixture("kjv-calibration.txt"));
    says(
        &stdout(command.arg("-o").arg(&diagnosis)),
        &["Don't touch the first", "norm ratio", "blk.3.attn_k"],
    );
    Known { stats, diagnosis }
}

fn preset(known: &Known, name: &str, file: &Path) -> assert_cmd::Command {
    let mut command = compress(name, file);
    command.arg("--stats").arg(&known.stats);
    command.arg("--diagnosis").arg(&known.diagnosis);
    command
}

fn divergence(file: &Path) -> f64 {
    let mut command = dwindle(["eval", "--ctx", "256", "--chunks", "8", "--json"]);
    command.arg(file).arg("--reference").arg(checkpoint());
    command.arg("--text").arg(fixture("kjv-heldout.txt"));
    let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    report["divergence"]["kld"]["value"].as_f64().unwrap()
}

/// Every layer's matrices small and of rank 2, but for one that is large and of full rank.
fn fragile(weight: &str, to: &Path) {
    let mut model = tiny(TensorType::F32);
    for (layout, data) in model.layout.iter().zip(&mut model.data) {
        let is_layer = layout.name.starts_with("blk.") && layout.shape.len() == 2;
        if !is_layer {
            continue;
        }
        let (n, m) = (layout.shape[0] as usize, layout.shape[1] as usize);
        let floats = data.as_chunks::<4>().0.iter();
        let w: Vec<f32> = floats.map(|b| f32::from_le_bytes(*b)).collect();
        if layout.name == weight {
            *data = w.iter().flat_map(|v| (v * 20.0).to_le_bytes()).collect();
            continue;
        }
        // The first 2 rows, mixed by the first 2 columns.
        let mut low = vec![0f32; n * m];
        for i in 0..m {
            for (j, out) in low[i * n..(i + 1) * n].iter_mut().enumerate() {
                *out = (0..2).map(|k| w[i * n + k] * w[k * n + j]).sum::<f32>() * 2.0;
            }
        }
        *data = low.iter().flat_map(|v| v.to_le_bytes()).collect();
    }
    model.write(to);
}

#[test]
fn a_fragile_layer_is_found() {
    let dir = tempdir().unwrap();
    let weight = "blk.1.ffn_up.weight";
    let model = dir.path().join("fragile.gguf");
    let stats = dir.path().join("stats.safetensors");
    fragile(weight, &model);
    let mut command = dwindle(["calibrate", "--chunks", "8", "--ctx", "64"]);
    command
        .arg(&model)
        .arg("--text")
        .arg(fixture("kjv-calibration.txt"));
    stdout(command.arg("-o").arg(&stats));
    let mut command = diagnose(&model, &stats);
    command.args(["--keep", "0.05", "--json", "--text"]);
    let text = stdout(command.arg(fixture("kjv-heldout.txt")));
    let report: Value = serde_json::from_str(&text).unwrap();
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 14);
    let figure = |i: usize, key: &str| tensors[i][key].as_f64().unwrap();
    assert_eq!(tensors[0]["name"], weight);
    assert!(
        figure(0, "kld") > 20.0 * figure(1, "kld").max(1e-6),
        "{tensors:?}"
    );
    assert!(figure(0, "effective_rank") > 4.0);
    for (i, tensor) in tensors.iter().enumerate().skip(1) {
        assert!(figure(i, "effective_rank") <= 2.01, "{tensor}");
        assert!(tensor["output_errors"]["svd"].as_f64().unwrap() < 1e-4);
        assert!(figure(i, "kld") <= figure(i - 1, "kld"));
    }
    // Layers before it read what they did.
    let inputs = report["inputs"].as_array().unwrap();
    assert!(inputs[0]["cosine"].as_f64().unwrap() > 0.9999);
    let last = inputs.last().unwrap();
    assert_eq!(last["weights"][0], "token_embd.weight");
    assert!(last["cosine"].as_f64().unwrap() < 0.999, "{last}");
    // Without a text there is no divergence, and no budget to be shared by it.
    let diagnosis = dir.path().join("d.json");
    stdout(diagnose(&model, &stats).arg("-o").arg(&diagnosis));
    let mut command = dwindle(["compress", "--preset", "balanced"]);
    command.arg(&model).arg("--stats").arg(&stats);
    command.arg("-o").arg(dir.path().join("x.dwn"));
    says(&refusal(&mut command, 3), &["--diagnosis"]);
    command.arg("--diagnosis").arg(&diagnosis);
    says(&refusal(&mut command, 3), &["d.json", "--text"]);
}

#[test]
fn every_preset_runs() {
    let known = known();
    let dir = tempdir().unwrap();
    let dir = dir.path();
    for name in [
        "source",
        "k-proj",
        "conservative",
        "balanced",
        "aggressive",
        "hybrid-0.3",
        "hybrid-0.5",
        "tensor-network",
        "attention-low",
        "attention-med",
        "attention-high",
    ] {
        let file = dir.join(format!("{name}.dwn"));
        stdout(&mut preset(known, name, &file));
        stdout(dwindle(["verify"]).arg(&file));
        stdout(dwindle(["run", "-n", "2", "-t", "1", "-p", "And"]).arg(&file));
    }
    // Budgets are kept, and spent.
    let mut last = f64::INFINITY;
    for (name, keep) in [
        ("conservative", 0.7),
        ("balanced", 0.5),
        ("aggressive", 0.3),
    ] {
        let mut command = preset(known, name, &dir.join("plan.dwn"));
        let plan = stdout(command.args(["--dry-run", "--json"]));
        let report: Value = serde_json::from_str(&plan).unwrap();
        let (mut kept, mut all) = (0, 0);
        for tensor in report["tensors"].as_array().unwrap() {
            let count = |shape: &Value| -> u64 {
                let dims = shape.as_array().unwrap().iter();
                dims.map(|d| d.as_u64().unwrap()).product()
            };
            let name = tensor["name"].as_str().unwrap();
            if name.starts_with("blk.") && !name.contains("norm") {
                all += count(&tensor["shape"]);
                let parts = tensor["parts"].as_array().unwrap().iter();
                kept += parts.map(|p| count(&p["shape"])).sum::<u64>();
            }
        }
        let share = kept as f64 / all as f64;
        assert!(share <= keep && share > 0.95 * keep, "{name}: {share}");
        assert!(share < last);
        last = share;
    }
    // A wish for a single budget costs less than the same keep everywhere.
    let even = dir.join("even.toml");
    let rule = "roles = [\"attn_q\", \"attn_k\", \"attn_v\", \"attn_output\", \"ffn_gate\", \
                \"ffn_up\", \"ffn_down\"]\nmethod = \"svd\"\nkeep = 0.5";
    std::fs::write(&even, format!("type = \"source\"\n[[rule]]\n{rule}\n")).unwrap();
    let mut command = dwindle(["compress"]);
    command.arg(checkpoint()).arg("--recipe").arg(&even);
    command.arg("--stats").arg(&known.stats);
    let file = dir.join("even.dwn");
    stdout(command.arg("-o").arg(&file));
    let (shared, even) = (divergence(&dir.join("balanced.dwn")), divergence(&file));
    assert!(shared < 0.5 * even, "{shared} {even}");
}

#[test]
fn layers_are_fitted_to_those_before() {
    let known = known();
    let dir = tempdir().unwrap();
    let dir = dir.path();
    let fit = |name: &str, file: &Path, threads: &str| {
        let mut command = preset(known, name, file);
        command.args(["--sequential", "--chunks", "16", "--threads", threads]);
        command.arg("--text").arg(fixture("kjv-calibration.txt"));
        stdout(&mut command);
    };
    for name in ["aggressive", "hybrid-0.5", "q4_0"] {
        let (alone, fitted) = (dir.join("alone.dwn"), dir.join("fitted.dwn"));
        stdout(&mut preset(known, name, &alone));
        fit(name, &fitted, "2");
        stdout(dwindle(["verify"]).arg(&fitted));
        let (alone, fitted) = (divergence(&alone), divergence(&fitted));
        assert!(fitted < 0.9 * alone, "{name}: {alone} {fitted}");
    }
    // Stacks over layers can't be fitted, and come out as they are.
    fit("tensor-network", &dir.join("network.dwn"), "1");
    stdout(dwindle(["verify"]).arg(dir.join("network.dwn")));
    // What can't be done leaves nothing.
    let before = listing(dir);
    let mut command = preset(known, "balanced", &dir.join("none.dwn"));
    let output = command.arg("--sequential").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    says(&String::from_utf8_lossy(&output.stderr), &["--text"]);
    let short = dir.join("short.txt");
    std::fs::write(&short, "And it came to pass").unwrap();
    let mut command = preset(known, "balanced", &dir.join("none.dwn"));
    command.arg("--sequential").arg("--text").arg(&short);
    says(
        &refusal(&mut command, 3),
        &["5 tokens", "at least one context of 512"],
    );
    std::fs::remove_file(short).unwrap();
    assert_eq!(listing(dir), before);
}

#[test]
fn experts_are_diagnosed_and_share_the_budget() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("mixture.gguf");
    let stats = dir.path().join("stats.safetensors");
    let diagnosis = dir.path().join("diagnosis.json");
    let file = dir.path().join("balanced.dwn");
    mixture(TensorType::F16).write(&model);
    calibrate(&model, &stats);
    let mut command = diagnose(&model, &stats);
    command.arg("--text").arg(fixture("kjv-calibration.txt"));
    stdout(command.arg("-o").arg(&diagnosis));
    let report: Value = serde_json::from_slice(&std::fs::read(&diagnosis).unwrap()).unwrap();
    let tensors = report["tensors"].as_array().unwrap();
    let names: Vec<&str> = tensors
        .iter()
        .map(|t| t["name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"blk.0.ffn_down_exps.weight"));
    // Nothing may touch the routers.
    assert!(!names.iter().any(|n| n.contains("gate_inp")));
    for text in [None, Some(fixture("kjv-calibration.txt"))] {
        let mut command = dwindle(["compress", "--preset", "balanced"]);
        command.arg(&model).arg("--stats").arg(&stats);
        command.arg("--diagnosis").arg(&diagnosis);
        if let Some(text) = &text {
            command
                .args(["--sequential", "--chunks", "4", "--text"])
                .arg(text);
        }
        stdout(command.arg("-o").arg(&file));
        let listed = stdout(dwindle(["inspect", "--json"]).arg(&file));
        says(&listed, &["blk.0.ffn_down_exps.weight", "\"svd\""]);
        stdout(dwindle(["verify"]).arg(&file).arg("--against").arg(&model));
        stdout(dwindle(["run", "-n", "2", "-t", "1", "-p", "And"]).arg(&file));
    }
}

#[test]
fn budgets_meet_what_they_can_not_share() {
    let known = known();
    let dir = tempdir().unwrap();
    let recipe = dir.path().join("recipe.toml");
    let auto = "method = \"svd\"\nrank = \"auto\"\nkeep = 0.5";
    // A rule of which a later one takes everything, and one that also speaks of the embedding.
    let rules = format!(
        "type = \"source\"\n[[rule]]\n{auto}\n[[rule]]\nroles = [\"attn_k\"]\n{auto}\n\
         [[rule]]\nroles = [\"attn_k\"]\ntype = \"q8_0\"\n"
    );
    std::fs::write(&recipe, rules).unwrap();
    let mut command = dwindle(["compress", "--dry-run", "--json"]);
    command.arg(checkpoint()).arg("--recipe").arg(&recipe);
    command.arg("--stats").arg(&known.stats);
    command.arg("--diagnosis").arg(&known.diagnosis);
    let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    let fallbacks = report["fallbacks"].as_array().unwrap();
    assert_eq!(fallbacks.len(), 1, "{fallbacks:?}");
    assert_eq!(fallbacks[0]["tensor"], "token_embd.weight");
    says(
        &fallbacks[0].to_string(),
        &["the diagnosis does not know it"],
    );
}

#[test]
fn layers_that_were_not_fitted_are_told() {
    let known = known();
    let dir = tempdir().unwrap();
    let file = dir.path().join("file.gguf");
    let fit = |chunks: &str| {
        let mut command = preset(known, "q4_0", &file);
        command.args(["--sequential", "--json", "--chunks", chunks]);
        command.arg("--text").arg(fixture("kjv-calibration.txt"));
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (said, report["unfitted"].as_array().unwrap().clone())
    };
    // Of 768 elements, which 512 tokens say too little of.
    let (said, unfitted) = fit("1");
    says(&said, &["warning: `blk.0.ffn_down.weight`", "and 3 more"]);
    says(&said, &["512 tokens", "at least 1536", "longer text"]);
    assert_eq!(unfitted.len(), 4);
    assert_eq!(unfitted[0]["reason"], "too-few-tokens");
    assert_eq!(unfitted[0]["weights"][0], "blk.0.ffn_down.weight");
    let bytes = std::fs::read(&file).unwrap();
    let container = Container::read(&bytes).unwrap();
    let of = |name: &str| {
        let tensors = &container.plan.tensors;
        let tensor = tensors.iter().find(|t| t.name == name).unwrap();
        tensor.parameters.get("unfitted").cloned()
    };
    says(
        of("blk.3.ffn_down.weight").unwrap().as_str().unwrap(),
        &["512 tokens"],
    );
    assert_eq!(of("blk.3.attn_q.weight"), None);
    let (said, unfitted) = fit("3");
    assert!(!said.contains("warning") && unfitted.is_empty(), "{said}");
}

#[test]
fn inputs_that_were_measured_in_blocks_are_told() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = at("model.gguf");
    tiny(TensorType::F16).write(&model);
    let mut command = dwindle(["calibrate", "--max-gram-width", "256", "-c", "64"]);
    command.args(["--chunks", "4", "-t", "1"]).arg(&model);
    command.arg("--text").arg(fixture("kjv-calibration.txt"));
    stdout(command.arg("-o").arg(at("stats")));
    let plan = |rule: &str| {
        std::fs::write(at("recipe.toml"), rule).unwrap();
        let mut command = dwindle(["compress", "--dry-run", "--json"]);
        command.arg(&model).arg("--recipe").arg(at("recipe.toml"));
        command.arg("--stats").arg(at("stats"));
        command
    };
    for (rule, done) in [
        ("type = \"q4_0\"\nrounding = \"output\"", "as ggml does"),
        (
            "type = \"f16\"\n[[rule]]\nroles = [\"ffn_down\", \"ffn_up\"]\nmethod = \"svd\"\nkeep = 0.5",
            "of its weights",
        ),
    ] {
        let report: Value = serde_json::from_str(&stdout(&mut plan(rule))).unwrap();
        let fallbacks = report["fallbacks"].as_array().unwrap();
        assert_eq!(fallbacks.len(), 2, "{fallbacks:?}");
        assert_eq!(fallbacks[0]["tensor"], "blk.0.ffn_down.weight");
        says(
            &fallbacks[0].to_string(),
            &[done, "512 elements", "in blocks"],
        );
    }
    let rule =
        "type = \"f16\"\n[[rule]]\nroles = [\"ffn_down\"]\nmethod = \"wanda\"\nsparsity = 0.5";
    says(
        &refusal(&mut plan(rule), 3),
        &[
            "`wanda`",
            "`blk.0.ffn_down.weight`",
            "512 elements in blocks",
        ],
    );
}
