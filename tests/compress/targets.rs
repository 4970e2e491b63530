//! Files of a size or a quality that was asked for.

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use assert_cmd::Command;
use dwindle_formats::gguf::TensorType;
use serde_json::Value;
use tempfile::tempdir;

use super::mark;
use crate::common::program::{
    DWINDLE, checkpoint, compress, dwindle, fixture, refusal, says, stdout,
};
use crate::common::tiny::{Kind, low_rank, mixture};

/// Types that are tried quickly.
const TYPES: &str = "q2_k,q3_k,q4_k,q5_k,q6_k,q8_0,q4_0,q5_0,f16";

/// Statistics of a model, measured on the fixture's text.
fn calibrate(model: &Path, to: &Path) {
    let mut command = dwindle(["calibrate", "--chunks", "16", "--ctx", "128"]);
    command
        .arg(model)
        .arg("--text")
        .arg(fixture("kjv-calibration.txt"));
    stdout(command.arg("-o").arg(to));
}

/// `dwindle compress` of a model with a target, what is measured beside the output.
fn target(model: &Path, wish: [&str; 2], output: &Path) -> Command {
    let mut command = dwindle(["compress", "--json", "--effort", "fast", "--types", TYPES]);
    command.args(["--chunks", "12"]).arg(model).args(wish);
    command.arg("--text").arg(fixture("kjv-calibration.txt"));
    measured_beside(&mut command, output);
    command.arg("-o").arg(output);
    command
}

/// What is measured is kept beside the output.
fn measured_beside(command: &mut Command, output: &Path) {
    command
        .arg("--workspace")
        .arg(output.with_file_name("measured"));
}

fn report(command: &mut Command) -> Value {
    serde_json::from_str(&stdout(command)).unwrap()
}

/// The mean KL divergence of a file from the fixture, on books that nothing was measured on.
fn kld(file: &Path) -> f64 {
    let mut command = dwindle(["eval", "--json", "--chunks", "10"]);
    command.arg(file).arg("--reference").arg(checkpoint());
    command.arg("--text").arg(fixture("kjv-heldout.txt"));
    report(&mut command)["divergence"]["kld"]["value"]
        .as_f64()
        .unwrap()
}

fn statistics(dir: &Path) -> PathBuf {
    let stats = dir.join("model.stats");
    calibrate(&checkpoint(), &stats);
    stats
}

#[test]
fn rounding_for_the_output_keeps_types_and_bytes_and_lowers_the_divergence() {
    let dir = tempdir().unwrap();
    let stats = statistics(dir.path());
    for (preset, most) in [("q4_k_m", 0.9), ("q2_k", 0.9)] {
        let [plain, fitted] = ["nearest", "output"].map(|rounding| {
            let file = dir.path().join(format!("{preset}-{rounding}.gguf"));
            let mut command = compress(preset, &file);
            command.arg("--stats").arg(&stats);
            stdout(command.args(["--rounding", rounding]));
            stdout(dwindle(["verify"]).arg(&file));
            file
        });
        let types = |file: &Path| {
            let found = report(dwindle(["inspect", "--json"]).arg(file));
            let tensors = found["tensors"].as_array().unwrap().clone();
            tensors
                .iter()
                .map(|t| (t["name"].clone(), t["ty"].clone(), t["bytes"].clone()))
                .collect::<Vec<_>>()
        };
        assert_eq!(types(&plain), types(&fitted));
        let ratio = kld(&fitted) / kld(&plain);
        assert!(ratio <= most, "{preset}: {ratio}");
        // A file that somebody made, rounded again from the checkpoint.
        let again = dir.path().join(format!("{preset}-again.gguf"));
        let mut command = dwindle(["compress", "--rounding", "output", "--types-of"]);
        command
            .arg(&plain)
            .arg(checkpoint())
            .arg("--stats")
            .arg(&stats);
        stdout(command.arg("-o").arg(&again));
        assert_eq!(types(&plain), types(&again));
        assert_eq!(kld(&again), kld(&fitted));
    }
}

#[test]
fn a_size_is_hit_from_below_and_is_better_than_a_file_type_of_the_size() {
    let dir = tempdir().unwrap();
    let stats = statistics(dir.path());
    let plain = dir.path().join("plain.gguf");
    stdout(compress("q3_k_m", &plain).arg("--stats").arg(&stats));
    let bytes = plain.metadata().unwrap().len();
    let own = dir.path().join("own.gguf");
    let wish = ["--size", &format!("{bytes}B")];
    let mut command = target(&checkpoint(), wish, &own);
    let told = report(command.arg("--gate").arg(fixture("kjv-heldout.txt")));
    let found = own.metadata().unwrap().len();
    assert!(
        found <= bytes && found as f64 >= 0.995 * bytes as f64,
        "{found} of {bytes}"
    );
    assert!(kld(&own) < 0.6 * kld(&plain));
    let gate = &told["target"]["gate"];
    assert!(gate["bytes"].as_u64().unwrap() <= found);
    assert!(gate["own_kld"].as_f64() < gate["kld"].as_f64());
    stdout(dwindle(["verify"]).arg(&own));

    // What was measured is used again, and gives the same file.
    let again = dir.path().join("again.gguf");
    report(&mut target(&checkpoint(), wish, &again));
    assert!(std::fs::read(&own).unwrap() == std::fs::read(&again).unwrap());

    // Bits a weight, and a part of the checkpoint.
    for wish in [["--bpw", "4.5"], ["--size", "40%"]] {
        let told = report(&mut target(&checkpoint(), wish, &own));
        let bits = 8.0 * told["bytes"].as_f64().unwrap() / told["parameters"].as_f64().unwrap();
        assert!((4.4..6.5).contains(&bits), "{wish:?}: {bits}");
    }
}

#[test]
fn a_divergence_is_met_by_measurement_or_refused() {
    let dir = tempdir().unwrap();
    let own = dir.path().join("own.gguf");
    let told = report(&mut target(&checkpoint(), ["--max-kld", "0.02"], &own));
    let found = told["target"]["measured_kld"].as_f64().unwrap();
    assert!((0.015..=0.02).contains(&found), "{found}");

    let older = std::fs::read(&own).unwrap();
    let mut command = target(&checkpoint(), ["--max-kld", "1e-9"], &own);
    says(
        &refusal(&mut command, 3),
        &["the largest possible file diverges by", "0.000000001"],
    );
    let mut command = target(&checkpoint(), ["--size", "100K"], &own);
    says(
        &refusal(&mut command, 3),
        &["the smallest possible file has at least", "102400"],
    );
    assert!(std::fs::read(&own).unwrap() == older);
}

#[test]
fn a_search_ends_where_no_type_is_good_enough() {
    let dir = tempdir().unwrap();
    let own = dir.path().join("own.gguf");
    let mut command = dwindle(["compress", "--types", "q5_k,q5_1", "--max-kld", "1e-9"]);
    command
        .args(["--effort", "fast", "--chunks", "4"])
        .arg(checkpoint());
    command.arg("--text").arg(fixture("kjv-calibration.txt"));
    measured_beside(&mut command, &own);
    says(
        &refusal(command.arg("-o").arg(&own), 3),
        &["the largest possible file diverges by"],
    );
}

#[test]
fn a_quantized_source_keeps_what_it_has() {
    let dir = tempdir().unwrap();
    let source = dir.path().join("source.gguf");
    stdout(&mut compress("q4_k_m", &source));
    let own = dir.path().join("own.gguf");
    let told = report(&mut target(&source, ["--size", "4MB"], &own));
    for tensor in told["tensors"].as_array().unwrap() {
        assert_eq!(
            tensor["relative_error"].as_f64().unwrap_or(0.0),
            0.0,
            "{tensor}"
        );
    }
    // And can lose some.
    let told = report(&mut target(&source, ["--size", "80%"], &own));
    assert!(told["target"]["measured_kld"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_tensor_that_no_type_fits_is_named() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("model-f32.gguf");
    low_rank(Kind::Untied, 64).write(&model);
    let mut command = dwindle(["compress", "--types", "iq2_xxs", "--size", "50%"]);
    command.arg(&model).args(["--chunks", "4", "--text"]);
    command.arg(fixture("kjv-calibration.txt"));
    measured_beside(&mut command, &model);
    command.arg("-o").arg(dir.path().join("own.gguf"));
    says(
        &refusal(&mut command, 3),
        &["`token_embd.weight`", "such as `f16`"],
    );
}

#[test]
fn a_type_that_cant_hold_a_value_is_left_out() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("model-f32.gguf");
    let mut tiny = low_rank(Kind::Untied, 64);
    let name = "blk.1.ffn_down.weight";
    let index = tiny.layout.iter().position(|t| t.name == name).unwrap();
    let row = tiny.layout[index].shape[0] as usize * 4;
    for row in tiny.data[index].chunks_mut(row) {
        // More than 16 bits hold.
        row[..4].copy_from_slice(&1e5f32.to_le_bytes());
    }
    tiny.write(&model);
    let output = dir.path().join("own.gguf");
    let chosen = report(&mut target(&model, ["--size", "60%"], &output));
    assert!(output.exists(), "{chosen}");

    let mut only = dwindle(["compress", "--types", "f16", "--size", "60%"]);
    only.arg(&model).args(["--chunks", "12", "--text"]);
    only.arg(fixture("kjv-calibration.txt"));
    measured_beside(&mut only, &model);
    only.arg("-o").arg(dir.path().join("none.gguf"));
    says(
        &refusal(&mut only, 3),
        &[name, "can have none of the types"],
    );
}

/// Files of a model's workspace whose names begin so, or of its folder of a stage that does.
fn kept_of(workspaces: &Path, stage: &str) -> usize {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let all = std::fs::read_dir(folder).into_iter().flatten().flatten();
        all.map(|entry| entry.path()).collect()
    };
    let begins = |path: &Path, with: &str| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with(with)
    };
    let all = entries(workspaces).into_iter().flat_map(|w| entries(&w));
    let found = all.filter(|path| begins(path, stage));
    let count = |path: PathBuf| match path.is_dir() {
        true => entries(&path)
            .iter()
            .filter(|f| begins(f, "block-"))
            .count(),
        false => 1,
    };
    found.map(count).sum()
}

#[test]
fn a_killed_run_goes_on_and_gives_the_same_file() {
    let dir = tempdir().unwrap();
    let measured = dir.path().join("measured");
    let command = |output: &Path| target(&checkpoint(), ["--size", "30%"], output);
    let own = dir.path().join("own.gguf");
    report(&mut command(&own));
    std::fs::remove_dir_all(&measured).unwrap();

    // Killed while the model is measured, when that is done, and while its layers are rounded.
    let again = dir.path().join("again.gguf");
    for (stage, count) in [
        ("surveying-", 1),
        ("surveying-", 2),
        ("surveying-", 3),
        ("survey-", 1),
        ("rounded-", 1),
        ("rounded-", 2),
        ("rounded-", 3),
    ] {
        let mut child = Process::new(DWINDLE)
            .args(command(&again).get_args())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        mark::reached(&mut child, || kept_of(&measured, stage) >= count);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!again.exists());
    }
    report(&mut command(&again));
    assert!(std::fs::read(&own).unwrap() == std::fs::read(&again).unwrap());
}

#[test]
fn one_command_needs_no_text_and_threads_change_nothing() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("model-f32.gguf");
    low_rank(Kind::Untied, 64).write(&model);
    let [one, two] = ["1", "2"].map(|threads| {
        let folder = dir.path().join(threads);
        std::fs::create_dir(&folder).unwrap();
        let own = folder.join("own.gguf");
        let mut command = dwindle(["compress", "--json", "--bpw", "4.5", "--chunks", "4"]);
        command.args(["--effort", "fast", "--threads", threads]);
        measured_beside(&mut command, &own);
        let told = report(command.arg(&model).arg("-o").arg(&own));
        assert!(told["target"]["measured_kld"].as_f64().unwrap() > 0.0);
        std::fs::read(own).unwrap()
    });
    assert!(one == two);
    let listed =
        report(dwindle(["workspace", "--json", "--workspace"]).arg(dir.path().join("1/measured")));
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert!(listed[0]["bytes"].as_u64().unwrap() > 1000);
    stdout(
        dwindle(["workspace", "--remove", "all", "--workspace"]).arg(dir.path().join("1/measured")),
    );
    let left =
        report(dwindle(["workspace", "--json", "--workspace"]).arg(dir.path().join("1/measured")));
    assert!(left.as_array().unwrap().is_empty());
}

#[test]
fn experts_untied_outputs_and_other_architectures_can_have_a_size() {
    let dir = tempdir().unwrap();
    for (name, tiny) in [
        ("mixture", mixture(TensorType::F32)),
        ("untied", low_rank(Kind::Untied, 64)),
        ("gpt2", low_rank(Kind::Gpt2, 64)),
    ] {
        let model = dir.path().join(format!("{name}-f32.gguf"));
        tiny.write(&model);
        let own = dir.path().join(format!("{name}.gguf"));
        let told = report(&mut target(&model, ["--bpw", "5"], &own));
        stdout(dwindle(["verify"]).arg(&own));
        let tensors = told["tensors"].as_array().unwrap();
        let bytes: u64 = tensors.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
        let bits = 8.0 * bytes as f64 / told["parameters"].as_f64().unwrap();
        assert!((4.8..5.2).contains(&bits), "{name}: {bits}");
    }
}

#[test]
fn files_that_are_tried_better_the_choice() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("model-f32.gguf");
    low_rank(Kind::Untied, 64).write(&model);
    // So short that the files are tried on all that is measured in the end.
    let text = dir.path().join("text.txt");
    let whole = std::fs::read_to_string(fixture("kjv-calibration.txt")).unwrap();
    std::fs::write(&text, &whole[..4000]).unwrap();
    let [normal, best] = ["normal", "best"].map(|effort| {
        let own = dir.path().join(format!("{effort}.gguf"));
        let mut command = dwindle(["compress", "--json", "--types", TYPES]);
        command
            .arg(&model)
            .args(["--bpw", "4.5", "--effort", effort]);
        command.args(["--chunks", "4", "--text"]).arg(&text);
        measured_beside(&mut command, &own);
        let told = report(command.arg("-o").arg(&own));
        (own, told["target"]["measured_kld"].as_f64().unwrap())
    });
    let bytes = |file: &Path| file.metadata().unwrap().len();
    assert!(bytes(&best.0) <= bytes(&normal.0));
    assert!(best.1 <= normal.1, "{} and {}", best.1, normal.1);
}

#[test]
fn a_sweep_orders_files_and_draws_them() {
    let dir = tempdir().unwrap();
    let svg = dir.path().join("sweep.svg");
    let mut command = dwindle(["sweep", "--json", "--chunks", "4"]);
    command.args(["--types", &format!("{TYPES},iq2_xs")]);
    command.args(["--ladder", "q6_k,q4_k_m,iq2_xs", "--check", "5"]);
    command.args([
        "--target-memory-reduction",
        "70%",
        "--max-quality-loss",
        "1%",
    ]);
    command.args(["--effort", "fast"]).arg(checkpoint());
    command
        .arg("--text")
        .arg(fixture("kjv-calibration.txt"))
        .arg("--eval")
        .arg(fixture("kjv-heldout.txt"));
    measured_beside(&mut command, &svg);
    let told = report(command.arg("--svg").arg(&svg));
    let rows = told["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    for row in rows {
        assert!(row["own"]["bytes"].as_u64() <= row["plain"]["bytes"].as_u64());
        assert!(row["own"]["kld"].as_f64() < row["plain"]["kld"].as_f64());
    }
    assert!(told["ratio"].as_f64().unwrap() < 0.8);
    assert!(told["check"]["correlation"].as_f64().unwrap() > 0.8);
    let words = told["recommendation"].to_string();
    says(
        &words,
        &[
            "At least 70 % less memory",
            "At most 1.0 % worse",
            "The knee",
        ],
    );
    let drawn = std::fs::read_to_string(svg).unwrap();
    says(&drawn, &["<svg", "llama-quantize", "measured", "</svg>"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let dir = tempdir().unwrap();
    let own = dir.path().join("own.gguf");
    let base = |args: &[&str]| {
        let mut command = dwindle(["compress"]);
        command.arg(checkpoint()).args(args).arg("-o").arg(&own);
        command
    };
    says(
        &refusal(&mut base(&["--preset", "q8_0", "--gate", "t"]), 2),
        &["`--gate` is for targets"],
    );
    let fitted_twice = ["--size", "50%", "--sequential", "--text", "t"];
    says(
        &refusal(&mut base(&fitted_twice), 2),
        &["a target fits each layer", "omit `--sequential`"],
    );
    let container = dir.path().join("own.dwn");
    let mut command = dwindle([
        "compress", "--size", "50%", "--stats", "s", "--text", "t", "-o",
    ]);
    command.arg(&container).arg(checkpoint());
    says(&refusal(&mut command, 2), &["stock file", "`.gguf`"]);
    let narrow = ["--preset", "q8_0", "--keep", "0.9", "--rounding", "output"];
    says(
        &refusal(&mut base(&narrow), 2),
        &["smaller model", "second run"],
    );
    for wish in [["--bpw", "-1"], ["--bpw", "nan"], ["--max-kld", "0"]] {
        let wish = format!("{}={}", wish[0], wish[1]);
        let told = base(&[&wish]).output().unwrap();
        assert_eq!(told.status.code(), Some(2));
        let words = String::from_utf8_lossy(&told.stderr).into_owned();
        says(&words, &["expected a number above 0"]);
    }
    let mut command = target(&checkpoint(), ["--bpw", "1"], &own);
    says(
        &refusal(&mut command, 3),
        &["bits per weight, more than the requested 1"],
    );
    let short = dir.path().join("short.txt");
    std::fs::write(&short, "In the beginning").unwrap();
    let mut command = base(&["--size", "50%", "--types", "q8_0"]);
    command.arg("--text").arg(&short);
    measured_beside(&mut command, &own);
    says(
        &refusal(&mut command, 3),
        &["short.txt", "name a longer text"],
    );

    let measured = dir.path().join("measured");
    let workspace = std::fs::read_dir(measured).unwrap().next().unwrap();
    for file in std::fs::read_dir(workspace.unwrap().path()).unwrap() {
        let file = file.unwrap().path();
        if file.to_string_lossy().contains("survey-") {
            std::fs::write(&file, "{}").unwrap();
        }
    }
    let mut command = target(&checkpoint(), ["--bpw", "1"], &own);
    says(&refusal(&mut command, 3), &["holds no survey", "survey-"]);
    assert!(!own.exists());
}
