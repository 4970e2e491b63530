//! Files whose digests agree and whose metadata or tensors are wrong, run and evaluated by the program as
//! a child: it ends with exit code 0 or 3, without a signal, within bounds of memory and time.
//!
//! A sample runs with the other tests; `cargo xtask hostile` runs thousands of each kind.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tempfile::tempdir;

use crate::common::hostile::file::{File, Written};
use crate::common::hostile::mutation;
use crate::common::program;
use crate::common::program::{DWINDLE, fixture};

/// KiB of address space that a child may have.
const ADDRESS_SPACE: u64 = 6 << 20;
/// After so many seconds it is killed, which counts as a failure.
const SECONDS: &str = "60";

/// What a run of many mutants found.
#[derive(Debug, Default)]
struct Findings {
    runs: AtomicUsize,
    refused: AtomicUsize,
    /// Ended by the last line of defence: refused, but not before.
    late: Mutex<Vec<String>>,
    failed: Mutex<Vec<String>>,
}

/// A child process with limits of memory and time.
fn limited(args: &[&str], model: &Path, text: &Path) -> Output {
    let script = r#"ulimit -v "$0"; exec timeout -k 1 "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, &ADDRESS_SPACE.to_string(), SECONDS, DWINDLE]);
    command.args(args).arg(model);
    // What fails, fails on the thread that asked or on a worker.
    if args == ["eval"] {
        command.args(["--threads", "1", "--ctx", "64", "--chunks", "1", "--text"]);
        command.arg(text);
    } else {
        command.args(["--threads", "2", "--prompt", "a ab\nb", "-n", "4"]);
    }
    command.output().unwrap()
}

/// Runs and evaluates a file, and notes what it says.
fn judge(file: &File, path: &Path, text: &Path, said: &str, findings: &Findings) {
    file.write(path);
    for args in [&["run"][..], &["eval"][..]] {
        let output = limited(args, path, text);
        let stderr = String::from_utf8_lossy(&output.stderr);
        let errors = stderr.lines().filter(|l| l.starts_with("error: ")).count();
        let line = || format!("{:?}, {}: {said}: {stderr}", file.written, args[0]);
        findings.runs.fetch_add(1, Ordering::Relaxed);
        match output.status.code() {
            Some(0) => {}
            Some(3) if errors == 1 => {
                findings.refused.fetch_add(1, Ordering::Relaxed);
                if stderr.contains("llama.cpp can't go on") {
                    findings.late.lock().unwrap().push(line());
                }
            }
            _ => {
                let line = format!("{} ({})", line(), output.status);
                eprintln!("{line}");
                keep(path, &line, findings);
                findings.failed.lock().unwrap().push(line);
            }
        }
    }
}

/// Keeps a file that has failed, to look into.
fn keep(path: &Path, line: &str, findings: &Findings) {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("hostile");
    std::fs::create_dir_all(&dir).unwrap();
    let number = findings.runs.load(Ordering::Relaxed);
    let name = format!("{number}.{}", path.extension().unwrap().to_string_lossy());
    std::fs::copy(path, dir.join(&name)).unwrap();
    std::fs::write(dir.join(format!("{name}.txt")), line).unwrap();
}

type Mutate = fn(&mut ChaCha8Rng, &mut File) -> String;

/// So many mutants of one file.
fn mutants(written: Written, mutate: Mutate, count: usize, seed: u64, findings: &Findings) {
    let dir = tempdir().unwrap();
    let good = File::good(written, dir.path());
    let text = dir.path().join("text");
    let held_out = std::fs::read_to_string(fixture("kjv-heldout.txt")).unwrap();
    std::fs::write(&text, &held_out[..2_000]).unwrap();
    let next = AtomicUsize::new(0);
    let work = |worker: usize| {
        let path = dir.path().join(format!("{worker}.{}", written.extension()));
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(number as u64);
            let (file, said) = loop {
                let mut file = good.clone();
                let said = mutate(&mut rng, &mut file);
                if file.is_writable() {
                    break (file, said);
                }
            };
            judge(&file, &path, &text, &format!("{number}: {said}"), findings);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(0));
        scope.spawn(|| work(1));
    });
}

/// The good files run, then so many mutants of each.
#[track_caller]
fn every_mutant_is_refused_or_runs(metadata: usize, structure: usize, seed: u64) {
    let findings = Findings::default();
    for written in Written::ALL {
        mutants(written, |_, _| "unchanged".into(), 1, seed, &findings);
        assert_eq!(
            findings.refused.load(Ordering::Relaxed),
            0,
            "{written:?} runs"
        );
    }
    for written in Written::ALL {
        mutants(written, mutation::metadata, metadata, seed, &findings);
        mutants(written, mutation::structure, structure, seed, &findings);
    }
    let late = findings.late.into_inner().unwrap();
    let failed = findings.failed.into_inner().unwrap();
    eprintln!(
        "{} runs, {} refused, {} of them late, {} failed",
        findings.runs.into_inner(),
        findings.refused.into_inner(),
        late.len(),
        failed.len()
    );
    for line in &late {
        eprintln!("late: {line}");
    }
    assert_eq!(failed, [""; 0]);
}

#[test]
fn a_sample_of_hostile_models_is_refused_or_runs() {
    every_mutant_is_refused_or_runs(16, 10, 1);
}

/// A checkpoint like the fixture, with another value in its configuration.
fn configured(dir: &Path, key: &str, value: serde_json::Value) {
    for entry in std::fs::read_dir(program::checkpoint()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let path = dir.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&text).unwrap();
    config[key] = value;
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn configurations_that_contradict_themselves_are_not_written() {
    for (key, value, said) in [
        ("rms_norm_eps", -1, "layer_norm_rms_epsilon` is -1"),
        ("num_local_experts", 1, "expert_used_count` is missing"),
        ("num_experts_per_tok", 1, "expert_used_count` is 1"),
        ("n_group", 1, "expert_group_count` is 1"),
    ] {
        let dir = tempdir().unwrap();
        configured(dir.path(), key, value.into());
        let output = dir.path().join("out.gguf");
        let mut compress = program::dwindle(["compress", "--preset", "source", "-o"]);
        let sentence = program::refusal(compress.arg(&output).arg(dir.path()), 3);
        program::says(&sentence, &["could not be run", said]);
        assert!(!output.exists());
        let mut run = program::dwindle(["run", "--prompt", "a"]);
        let sentence = program::refusal(run.arg(dir.path()), 3);
        program::says(&sentence, &["can't be run", said]);
    }
}

/// `DWINDLE_HOSTILE` is the number of mutants of the metadata, of the structure, and the seed.
#[test]
#[ignore = "takes an hour; `cargo xtask hostile` starts it"]
fn thousands_of_hostile_models_are_refused_or_run() {
    let counts = std::env::var("DWINDLE_HOSTILE").unwrap_or_else(|_| "2000 1000 7".into());
    let numbers: Vec<u64> = counts.split(' ').map(|n| n.parse().unwrap()).collect();
    let [metadata, structure, seed] = numbers[..] else {
        panic!("DWINDLE_HOSTILE is `{counts}`, expected three numbers");
    };
    every_mutant_is_refused_or_runs(metadata as usize, structure as usize, seed);
}
