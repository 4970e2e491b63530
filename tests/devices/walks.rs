//! What replaces weights there: sensitivities, and files of a size.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::common::program::{checkpoint, compress, dwindle, fixture, stdout};
use crate::server::Device;
use crate::sums::{CPU, no_worse, number, same};

fn report(command: &mut assert_cmd::Command) -> Value {
    serde_json::from_str(&stdout(command)).unwrap()
}

#[test]
fn sensitivities_are_measured_there() {
    let device = Device::start();
    let dir = tempdir().unwrap();
    let stats = dir.path().join("stats");
    let mut command = dwindle(["calibrate", "--chunks", "4", "--ctx", "128"]);
    command.arg(checkpoint()).arg("-o").arg(&stats);
    stdout(command.arg("--text").arg(fixture("kjv-calibration.txt")));
    let [there, here] = [&device.options()[..], &CPU].map(|options| {
        let mut command = dwindle(["diagnose", "--json", "--ctx", "64"]);
        command.arg(checkpoint()).arg("--stats").arg(&stats);
        command.arg("--text").arg(fixture("kjv-calibration.txt"));
        report(command.args(options))
    });
    let divergences = |report: &Value| -> Vec<(String, f64)> {
        let tensors = report["tensors"].as_array().unwrap().iter();
        let mut all: Vec<_> = tensors
            .map(|t| (t["name"].to_string(), number(t, "/kld")))
            .collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    };
    let (there, here) = (divergences(&there), divergences(&here));
    assert!(here.len() > 20);
    for ((name, there), (same_name, here)) in there.iter().zip(&here) {
        assert_eq!(name, same_name);
        let what = format!("divergence by {name}");
        same(&what, [*there, *here], 5e-2 * device.noise());
    }
    device.has_worked();
}

/// `compress` to a size with a workspace of its own.
fn of_a_size(folder: &Path, options: &[&str]) -> Value {
    let file = folder.join("file.gguf");
    let mut command = dwindle(["compress", "--json", "--effort", "fast", "--size", "40%"]);
    command.args(["--types", "q3_k,q4_k,q6_k,q8_0", "--chunks", "8"]);
    command.arg(checkpoint()).args(options).arg("-o").arg(&file);
    command.arg("--text").arg(fixture("kjv-calibration.txt"));
    command.arg("--workspace").arg(folder.join("measured"));
    report(&mut command)
}

#[test]
fn files_of_a_size_are_made_there() {
    let device = Device::start();
    let [there, here] = [&device.options()[..], &CPU].map(|options| {
        let dir = tempdir().unwrap();
        let report = of_a_size(dir.path(), options);
        stdout(dwindle(["verify"]).arg(dir.path().join("file.gguf")));
        report
    });
    for (what, path, most) in [
        ("bytes of a file of 40 %", "/bytes", 1e-2),
        ("its predicted divergence", "/target/predicted_kld", 5e-2),
        ("its measured divergence", "/target/measured_kld", 5e-2),
    ] {
        let both = [number(&there, path), number(&here, path)];
        no_worse(&device, what, both, most);
    }
    device.has_worked();
}

#[test]
fn layers_are_fitted_there_one_after_the_other() {
    let device = Device::start();
    let [there, here] = [&device.options()[..], &CPU].map(|options| {
        let dir = tempdir().unwrap();
        let file = dir.path().join("file.gguf");
        let mut command = compress("q3_k_m", &file);
        command.args(["--rounding", "output", "--chunks", "8"]);
        command.arg("--text").arg(fixture("kjv-calibration.txt"));
        command.arg("--workspace").arg(dir.path().join("measured"));
        stdout(command.args(options));
        let mut command = dwindle(["eval", "--json", "--ctx", "128", "--chunks", "8"]);
        command.arg(&file).arg("--reference").arg(checkpoint());
        report(command.arg("--text").arg(fixture("kjv-heldout.txt")))
    });
    let path = "/divergence/kld/value";
    let both = [number(&there, path), number(&here, path)];
    same(
        "divergence of a rounded q3_k_m",
        both,
        5e-2 * device.noise(),
    );
    device.has_worked();
}
