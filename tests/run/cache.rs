//! Saved prompts are packed, unpacked and measured.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::common::program::{checkpoint, dwindle, fixture, refusal, says, stdout};

/// A folder with the fixture's codebook and a saved prompt.
fn made() -> &'static Path {
    static MADE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_path_buf();
        let mut calibrate = dwindle(["cache", "calibrate", "--window", "448", "--windows", "12"]);
        calibrate
            .arg(checkpoint())
            .arg("--text")
            .arg(fixture("kjv-calibration.txt"));
        calibrate.arg("-o").arg(path.join("codebook")).arg("--json");
        let report: Value = serde_json::from_str(&stdout(&mut calibrate)).unwrap();
        let trials = report["trials"].as_array().unwrap();
        let of = |key: &str| {
            trials
                .iter()
                .map(|t| t[key].as_f64().unwrap())
                .collect::<Vec<_>>()
        };
        assert!(
            of("ratio").is_sorted() && of("step").is_sorted(),
            "{report}"
        );
        assert!(of("kld").is_sorted(), "{report}");
        // The codebook's own limit, of its components; the rest is small.
        let bytes = report["bytes"].as_u64().unwrap();
        assert!(bytes < 6_900_000 * 8 / 100, "{bytes}");
        let mut run = dwindle(["run", "--temp", "0", "-n", "1", "-p", &prompt()]);
        run.arg(checkpoint())
            .arg("--save-session")
            .arg(path.join("state"));
        stdout(&mut run);
        (folder, path)
    });
    path
}

/// Some hundred words that the codebook was not made from.
fn prompt() -> String {
    let text = std::fs::read_to_string(fixture("kjv-heldout.txt")).unwrap();
    text.split_whitespace()
        .take(220)
        .collect::<Vec<_>>()
        .join(" ")
}

fn pack(options: &[&str], output: &Path) -> assert_cmd::Command {
    let mut pack = dwindle(["cache", "pack"]);
    pack.arg(made().join("state"))
        .args(options)
        .arg("-o")
        .arg(output);
    pack
}

fn unpack(packed: &Path, options: &[&str], output: &Path) -> assert_cmd::Command {
    let mut unpack = dwindle(["cache", "unpack"]);
    unpack.arg(packed).args(options).arg("-o").arg(output);
    unpack
}

#[test]
fn a_packed_prompt_comes_back_bit_by_bit_or_as_small_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    let [packed, state] = ["packed", "state"].map(|name| folder.path().join(name));
    stdout(&mut pack(&["--lossless"], &packed));
    stdout(&mut unpack(&packed, &[], &state));
    let original = std::fs::read(made().join("state")).unwrap();
    assert_eq!(std::fs::read(&state).unwrap(), original);
    let lossless = std::fs::metadata(&packed).unwrap().len();
    assert!(lossless < original.len() as u64 * 88 / 100, "{lossless}");

    let codebook = made().join("codebook");
    let codebook = codebook.to_str().unwrap();
    let options = ["--codebook", codebook, "--ratio", "8", "--json"];
    let report: Value = serde_json::from_str(&stdout(&mut pack(&options, &packed))).unwrap();
    let bytes = report["bytes"].as_f64().unwrap();
    assert_eq!(std::fs::metadata(&packed).unwrap().len() as f64, bytes);
    let ratio = report["f16_bytes"].as_f64().unwrap() / bytes;
    assert!((8.0..8.6).contains(&ratio), "{ratio}");
    let info = stdout(dwindle(["cache", "info"]).arg(&packed));
    says(&info, &["sequence, version 4", "transform", "f16 × 128"]);
    stdout(&mut unpack(
        &packed,
        &["--codebook", codebook, "--cache-type", "q8_0"],
        &state,
    ));
    says(
        &stdout(dwindle(["cache", "info"]).arg(&state)),
        &["q8_0 × 128", "yes"],
    );
}

#[test]
fn what_packing_costs_is_measured_beside_other_ways() {
    let mut eval = dwindle([
        "cache",
        "eval",
        "--ctx",
        "384",
        "--scored",
        "64",
        "--windows",
        "3",
    ]);
    eval.arg(checkpoint())
        .arg("--text")
        .arg(fixture("kjv-heldout.txt"));
    eval.arg("--codebook")
        .arg(made().join("codebook"))
        .args(["--ratio", "6,12", "--json"]);
    let rows: Vec<Value> = serde_json::from_str(&stdout(&mut eval)).unwrap();
    let row = |name: &str| {
        let row = rows
            .iter()
            .find(|r| r["name"] == name)
            .unwrap_or_else(|| panic!("{name}"));
        (row["ratio"].as_f64().unwrap(), row["kld"].as_f64().unwrap())
    };
    for exact in ["f16", "lossless"] {
        assert_eq!(row(exact).1, 0.0, "{exact}");
    }
    let (half, quarter) = (row("q8_0"), row("q4_0"));
    assert!(half.1 < quarter.1, "{half:?} {quarter:?}");
    let (six, twelve) = (row("transform, ratio 6"), row("transform, ratio 12"));
    assert!(
        six.1 < quarter.1 && six.0 > 1.5 * quarter.0,
        "{six:?} {quarter:?}"
    );
    let svd = row("chunked SVD, low");
    assert!(
        twelve.1 < svd.1 / 5.0 && twelve.0 > 0.95 * svd.0,
        "{twelve:?} {svd:?}"
    );
}

#[test]
fn caches_of_several_lengths_and_types_are_measured() {
    let folder = tempfile::tempdir().unwrap();
    let chart = folder.path().join("cache.svg");
    let mut bench = dwindle(["cache", "bench", "--lengths", "48,96", "--batch", "1,2"]);
    bench.args(["--scored", "8", "--cache-type", "q4_0", "--json", "-t", "1"]);
    bench.arg(checkpoint()).arg("--text");
    bench
        .arg(fixture("kjv-heldout.txt"))
        .arg("--svg")
        .arg(&chart);
    let report: Value = serde_json::from_str(&stdout(&mut bench)).unwrap();
    let caches = report["caches"].as_array().unwrap();
    assert_eq!(caches.len(), 8);
    // Two heads of 64 elements, keys and values, four layers, 16 or 4.5 bits.
    for cache in caches {
        let number = |key: &str| cache[key].as_f64().unwrap();
        let bits = if cache["cache_type"] == "f16" {
            16.0
        } else {
            4.5
        };
        let tokens = number("length") * number("batch");
        assert_eq!(number("computed"), tokens * 2.0 * 128.0 * 4.0 * bits / 8.0);
        assert!(number("allocated") >= number("computed"));
        assert!(number("packed") < number("saved") && number("saved") > number("computed"));
        // Bit by bit, so that nothing is said otherwise; F16 is what the others are compared with.
        assert_eq!(number("packed_kld"), number("kld"));
        assert_eq!(number("kld") == 0.0, cache["cache_type"] == "f16");
        assert_eq!(number("hidden"), number("batch"));
    }
    let stages = report["stages"].as_array().unwrap();
    let names: Vec<&str> = stages
        .iter()
        .map(|s| s["stage"].as_str().unwrap())
        .collect();
    let expected = [
        "load", "read", "save", "go on", "ask", "pack", "unpack", "restore",
    ];
    assert_eq!(names, expected);
    assert!(report["memory"].as_array().unwrap().len() > 8);
    let drawn = std::fs::read_to_string(&chart).unwrap();
    says(
        &drawn,
        &["<svg", "polyline", "to unpack and restore", "resident"],
    );
    let error = refusal(bench.args(["--lengths", "100000"]), 3);
    says(&error, &["the text has", "expected at least"]);
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("packed");
    let error = refusal(&mut pack(&["--method", "transform"], &output), 2);
    says(&error, &["--codebook", "dwindle cache calibrate"]);
    let mut text = dwindle(["cache", "pack"]);
    text.arg(fixture("README.md")).arg("-o").arg(&output);
    says(
        &refusal(&mut text, 3),
        &["README.md", "no state of llama.cpp's"],
    );
    let codebook = made().join("codebook");
    stdout(&mut pack(
        &["--codebook", codebook.to_str().unwrap()],
        &output,
    ));
    let state = folder.path().join("state");
    says(
        &refusal(&mut unpack(&output, &[], &state), 3),
        &["codebook; name it"],
    );
    let same = refusal(&mut unpack(&output, &[], &output), 2);
    says(&same, &["packed"]);
    let mut damaged = std::fs::read(&output).unwrap();
    let at = damaged.len() / 2;
    damaged[at] ^= 1;
    std::fs::write(&output, damaged).unwrap();
    let error = refusal(dwindle(["cache", "info"]).arg(&output), 3);
    says(&error, &["checksum of cells", "damaged"]);
    assert!(!state.exists());
}

#[test]
fn a_codebook_shows_whether_rows_of_an_older_version_are_rotated() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let codebook = made().join("codebook");
    let with = ["--codebook", codebook.to_str().unwrap()];
    stdout(&mut pack(
        &[&with[..], &["--ratio", "4"]].concat(),
        &at("packed"),
    ));
    let mut texts = Vec::new();
    for (rotate, expected) in [("on", [64, 64]), ("off", [0, 0])] {
        let older = ["--cache-type", "q8_0", "--version", "3", "--rotate", rotate];
        stdout(&mut unpack(
            &at("packed"),
            &[&with[..], &older].concat(),
            &at("older"),
        ));
        let mut again = dwindle(["cache", "pack", "--ratio", "4", "--json"]);
        again.args(with).arg(at("older")).arg("-o").arg(at("again"));
        let report: Value = serde_json::from_str(&stdout(&mut again)).unwrap();
        assert_eq!(report["rotated"], serde_json::json!(expected));
        let newer = ["--cache-type", "f16", "--version", "4"];
        stdout(&mut unpack(
            &at("again"),
            &[&with[..], &newer].concat(),
            &at("newer"),
        ));
        let mut run = dwindle([
            "run",
            "--temp",
            "0",
            "-n",
            "12",
            "-p",
            &prompt(),
            "--session",
        ]);
        texts.push(stdout(run.arg(at("newer")).arg(checkpoint())));
        // Bit by bit nothing shows it: it stays as it is, and nothing else is made of it.
        let mut whole = dwindle(["cache", "pack", "--lossless"]);
        stdout(whole.arg(at("older")).arg("-o").arg(at("whole")));
        stdout(&mut unpack(&at("whole"), &[], &at("back")));
        assert!(std::fs::read(at("back")).unwrap() == std::fs::read(at("older")).unwrap());
        let error = refusal(&mut unpack(&at("whole"), &["--version", "4"], &at("no")), 3);
        says(&error, &["rotated", "codebook"]);
    }
    let mut run = dwindle(["run", "--temp", "0", "-n", "12", "-p", &prompt()]);
    let text = stdout(run.arg(checkpoint()));
    assert_eq!(texts, [text.clone(), text]);
}
