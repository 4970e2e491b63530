//! Running and measuring the fixture's files, as a user does.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tempfile::tempdir;

use crate::common::program::{checkpoint, compress, dwindle, fixture, says, stdout};

const CHUNKS: &str = "8";

/// llama.cpp's threads spin while they wait: more of them than cores take many times as long. So
/// one model at a time, each on one thread.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    // A test that failed has left nothing behind that another could see.
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The report of an evaluation on the held-out text.
fn eval(file: &Path, reference: Option<&Path>) -> Value {
    let mut command = dwindle([
        "eval",
        "--threads",
        "1",
        "--json",
        "--chunks",
        CHUNKS,
        "--text",
    ]);
    command.arg(fixture("kjv-heldout.txt")).arg(file);
    if let Some(reference) = reference {
        command.arg("--reference").arg(reference);
    }
    serde_json::from_str(&stdout(&mut command)).unwrap()
}

fn number(report: &Value, path: &str) -> f64 {
    let value = report.pointer(path).and_then(Value::as_f64);
    value.unwrap_or_else(|| panic!("no {path} in {report}"))
}

const PERPLEXITY: &str = "/perplexity/perplexity/value";

#[test]
fn the_perplexity_of_held_out_text_is_what_training_left() {
    let _alone = alone();
    let dir = tempdir().unwrap();
    let f16 = dir.path().join("f16.gguf");
    stdout(&mut compress("f16", &f16));
    let source = number(&eval(&checkpoint(), None), PERPLEXITY);
    let converted = number(&eval(&f16, None), PERPLEXITY);
    assert!((18.5..19.5).contains(&source), "{source}");
    // ggml rounds activations to the weights' type, BF16 or F16.
    assert!((source - converted).abs() < 2e-3, "{source} {converted}");
}

#[test]
fn the_divergence_grows_with_what_was_taken_away() {
    let _alone = alone();
    let dir = tempdir().unwrap();
    let divergence = |preset: &str, extension: &str| {
        let path = dir.path().join(format!("{preset}.{extension}"));
        stdout(&mut compress(preset, &path));
        number(&eval(&path, Some(&checkpoint())), "/divergence/kld/value")
    };
    let lossless = divergence("source", "dwn");
    let (q8, q4) = (divergence("q8_0", "gguf"), divergence("q4_k_m", "gguf"));
    let factors = divergence("k-proj", "dwn");
    assert!(lossless.abs() < 1e-5, "{lossless}");
    assert!(q8 < 5e-3 && q8 < q4 && q4 < 0.2, "{q8} {q4}");
    assert!(factors > 1e-5 && factors < 0.5, "{factors}");
}

#[test]
fn the_same_seed_gives_the_same_text_and_stdout_holds_nothing_else() {
    let _alone = alone();
    let dir = tempdir().unwrap();
    let stock = dir.path().join("source.gguf");
    let container = dir.path().join("source.dwn");
    stdout(&mut compress("source", &stock));
    stdout(&mut compress("source", &container));
    let run = |file: &Path, more: &[&str]| {
        let prompt = [
            "run",
            "-t",
            "1",
            "-n",
            "24",
            "--prompt",
            "And it came to pass",
        ];
        stdout(dwindle(prompt).arg(file).args(more))
    };
    let greedy = run(&stock, &["--temp", "0"]);
    assert!(greedy.starts_with("And it came to pass"), "{greedy}");
    assert!(greedy.len() > "And it came to pass".len() + 24, "{greedy}");
    assert!(greedy.is_ascii() && greedy.ends_with('\n'), "{greedy}");
    assert_eq!(run(&stock, &["--temp", "0", "--seed", "7"]), greedy);
    assert_eq!(run(&container, &["--temp", "0"]), greedy);
    assert_eq!(run(&checkpoint(), &["--temp", "0"]), greedy);
    let warm = ["--temp", "1.5", "--seed"];
    let seeded = |seed| run(&stock, &[&warm[..], &[seed]].concat());
    assert_eq!(seeded("1"), seeded("1"));
    assert_ne!(seeded("1"), seeded("2"));
}

#[test]
fn a_bench_measures_both_files() {
    let _alone = alone();
    let dir = tempdir().unwrap();
    let path = dir.path().join("q8_0.gguf");
    stdout(&mut compress("q8_0", &path));
    let mut command = dwindle([
        "bench", "-t", "1", "--json", "--runs", "1", "-p", "32", "-n", "8",
    ]);
    command.arg(&path).arg("--reference").arg(checkpoint());
    let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    for side in ["file", "reference"] {
        for rate in ["prompt_per_second", "generated_per_second"] {
            assert!(number(&report, &format!("/{side}/{rate}")) > 1.0);
        }
    }
    let mut command = dwindle(["bench", "-t", "1", "--runs", "1", "-p", "32", "-n", "8"]);
    says(&stdout(command.arg(&path)), &["prompt of 32", "load time"]);
}

#[test]
fn text_without_a_limit_ends_where_the_context_does() {
    let _alone = alone();
    let run = |predict: &str| {
        let mut command = dwindle(["run", "--ctx", "64", "--temp", "0", "-t", "1"]);
        command.args(["-p", "And it came to pass", "-n", predict]);
        command.arg(checkpoint());
        command
    };
    let limited = stdout(&mut run("1000"));
    for predict in ["-1", "-2", "9223372036854775808", "18446744073709551615"] {
        assert_eq!(stdout(&mut run(predict)), limited, "{predict}");
    }
    for predict in ["-3", "18446744073709551616", "many"] {
        let output = run(predict).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{predict}");
    }
}
