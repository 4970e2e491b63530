//! What is computed and summed there: logits, factors, keys and values, inputs of layers.

use std::path::{Path, PathBuf};

use dwindle::statistics::Statistics;
use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::common::program::{checkpoint, compress, dwindle, fixture, stdout};
use crate::server::Device;

/// What runs a model on the CPU.
pub const CPU: [&str; 2] = ["--device", "none"];

/// A container of the fixture with factored keys.
fn factored() -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let file = dir.path().join("factored.dwn");
    stdout(&mut compress("k-proj", &file));
    (dir, file)
}

fn evaluation(file: &Path, options: &[&str]) -> Value {
    let mut command = dwindle(["eval", "--json", "--ctx", "128", "--chunks", "8"]);
    command.arg(file).arg("--reference").arg(checkpoint());
    command.arg("--text").arg(fixture("kjv-heldout.txt"));
    serde_json::from_str(&stdout(command.args(options))).unwrap()
}

/// A number of a report.
pub fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).unwrap()
}

/// Prints a difference, which is the proof, and asserts that it is float noise.
#[track_caller]
pub fn same(what: &str, [there, here]: [f64; 2], most: f64) {
    let difference = (there - here).abs() / here.abs();
    println!("{what}: {there} on the device, {here} on the CPU, {difference:.1e} apart");
    assert!(difference <= most, "{what}: {there} and {here}");
}

/// As [`same`], of a divergence from the original. It is smaller on devices whose products don't round what they
/// read to 8 bits, as the CPU's do.
#[track_caller]
pub fn no_worse(device: &Device, what: &str, both: [f64; 2], most: f64) {
    if device.noise() > 1.0 && both[0] < both[1] {
        println!("{what}: {} on the device, {} on the CPU", both[0], both[1]);
        return;
    }
    same(what, both, most * device.noise());
}

#[test]
fn factors_are_executed_there() {
    let device = Device::start();
    let (_dir, file) = factored();
    let [there, here] = [&device.options()[..], &CPU].map(|options| evaluation(&file, options));
    for (what, path, most) in [
        (
            "perplexity of factors",
            "/perplexity/perplexity/value",
            1e-3,
        ),
        ("divergence of factors", "/divergence/kld/value", 5e-2),
    ] {
        let both = [number(&there, path), number(&here, path)];
        if path.contains("kld") {
            no_worse(&device, what, both, most);
        } else {
            same(what, both, most * device.noise());
        }
    }
    let partly = [&device.options()[..], &["-ngl", "2"]].concat();
    let partly = evaluation(&file, &partly);
    let path = "/perplexity/perplexity/value";
    let both = [number(&partly, path), number(&here, path)];
    same(
        "perplexity of factors, one block there",
        both,
        1e-3 * device.noise(),
    );
    device.has_worked();
}

#[test]
fn keys_and_values_are_kept_there() {
    let device = Device::start();
    for kind in ["f16", "q8_0", "q4_0"] {
        let text = |options: &[&str]| {
            let mut command = dwindle(["run", "--temp", "0", "-n", "12", "-p", "And God said"]);
            command.args(["--flash-attn", "on", "--cache-type", kind]);
            stdout(command.arg(checkpoint()).args(options))
        };
        let (there, here) = (text(&device.options()), text(&CPU));
        println!("{kind} keys and values: {there:?} on the device");
        // Where two words are about as likely, noise decides.
        let same = there.bytes().zip(here.bytes()).take_while(|(a, b)| a == b);
        let least = if device.noise() > 1.0 { 24 } else { here.len() };
        assert!(same.count() >= least, "{kind}: {there:?} and {here:?}");
    }
    device.has_worked();
}

#[test]
fn calibration_sums_what_layers_read_there() {
    let device = Device::start();
    let dir = tempdir().unwrap();
    let statistics = |name: &str, options: &[&str]| {
        let file = dir.path().join(name);
        let mut command = dwindle(["calibrate", "--chunks", "8", "--ctx", "128"]);
        command.arg(checkpoint()).args(options);
        command.arg("--text").arg(fixture("kjv-calibration.txt"));
        stdout(command.arg("-o").arg(&file));
        Statistics::open(&file).unwrap()
    };
    let there = statistics("there", &device.options());
    let here = statistics("here", &CPU);
    for weight in ["blk.0.attn_q.weight", "blk.3.ffn_down.weight"] {
        let [a, b] = [&there, &here].map(|s| s.gram(weight, 0).unwrap().unwrap());
        let pairs = a.values.iter().zip(b.values);
        let distance: f64 = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let norm: f64 = b.values.iter().map(|b| f64::from(*b).powi(2)).sum();
        let relative = (distance / norm).sqrt();
        println!("second moments of {weight}: {relative:.1e} apart");
        assert!(relative < 1e-3 * device.noise(), "{weight}: {relative}");
    }
    device.has_worked();
}
