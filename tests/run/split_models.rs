//! Models in several GGUF files, in the form of llama-gguf-split's.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::{TempDir, tempdir};

use crate::common::parts::{name, split};
use crate::common::program::{checkpoint, compress, dwindle, fixture, refusal, says, stdout};
use crate::common::tiny::{Kind, low_rank};

/// The fixture in one file without checksums, and in three.
fn files(dir: &TempDir) -> (PathBuf, Vec<PathBuf>) {
    let signed = dir.path().join("signed.gguf");
    stdout(&mut compress("q8_0", &signed));
    let whole = dir.path().join("whole.gguf");
    crate::common::parts::strip(&signed, &whole);
    let parts = split(&whole, &dir.path().join("m"), 3);
    (whole, parts)
}

fn perplexity(file: &Path) -> f64 {
    let mut command = dwindle(["eval", "--json", "--chunks", "2", "--text"]);
    let told = stdout(command.arg(fixture("kjv-heldout.txt")).arg(file));
    let told: Value = serde_json::from_str(&told).unwrap();
    told["perplexity"]["perplexity"]["value"].as_f64().unwrap()
}

#[test]
fn parts_are_the_model_that_they_were() {
    let dir = tempdir().unwrap();
    let (whole, parts) = files(&dir);
    assert_eq!(perplexity(&parts[1]), perplexity(&whole));
    let listed = |file: &Path| {
        let told = stdout(dwindle(["inspect", "--json"]).arg(file));
        let told: Value = serde_json::from_str(&told).unwrap();
        (told["parameters"].clone(), told["tensors"].clone())
    };
    assert_eq!(listed(&parts[2]), listed(&whole));

    let [of_parts, of_whole] = [&parts[0], &whole].map(|source| {
        let output = dir.path().join("smaller.gguf");
        let mut command = dwindle(["compress", "--preset", "q4_0"]);
        stdout(command.arg(source).arg("-o").arg(&output));
        std::fs::read(output).unwrap()
    });
    assert!(of_parts == of_whole);

    // Types that each tensor has in the parts.
    let output = dir.path().join("typed.gguf");
    let mut command = dwindle(["compress", "--types-of"]);
    command.arg(&parts[0]).arg(checkpoint());
    stdout(command.arg("-o").arg(&output));
    assert_eq!(listed(&output).0, listed(&whole).0);
}

#[test]
fn parts_that_are_missing_doubled_or_of_another_model_are_named() {
    let dir = tempdir().unwrap();
    let (_, parts) = files(&dir);
    let sound = std::fs::read(&parts[1]).unwrap();
    let refused = |words: &[&str]| {
        for command in ["inspect", "bench", "compress --dry-run --preset q4_0"] {
            let mut command = dwindle(command.split(' '));
            says(&refusal(command.arg(&parts[0]), 3), words);
        }
    };
    std::fs::remove_file(&parts[1]).unwrap();
    refused(&[
        "part 2 of 3 of the model is missing",
        "m-00002-of-00003.gguf",
    ]);
    std::fs::copy(&parts[2], &parts[1]).unwrap();
    refused(&[
        "m-00002-of-00003.gguf",
        "says that it is part 3 of 3, expected part 2",
    ]);

    let other = dir.path().join("other.gguf");
    low_rank(Kind::Untied, 64).write(&other);
    let other = split(&other, &dir.path().join("other"), 3);
    std::fs::copy(&other[1], &parts[1]).unwrap();
    refused(&["parts of different models"]);
    std::fs::write(&parts[1], &sound[..sound.len() / 2]).unwrap();
    refused(&["m-00002-of-00003.gguf", "truncated"]);
}

#[test]
fn no_output_takes_the_place_of_a_part() {
    let dir = tempdir().unwrap();
    let (_, parts) = files(&dir);
    let second = std::fs::read(&parts[1]).unwrap();
    let mut command = dwindle(["compress", "--preset", "q4_0"]);
    command
        .arg(&parts[0])
        .arg("-o")
        .arg(name(&dir.path().join("m"), 2, 3));
    says(
        &refusal(&mut command, 2),
        &["is the checkpoint", "choose another output"],
    );
    assert!(std::fs::read(&parts[1]).unwrap() == second);
}

/// The fixture in `q4_k_m`, in files of at most this size.
fn written(dir: &TempDir, name: &str, size: &str) -> Vec<PathBuf> {
    let mut command = compress("q4_k_m", &dir.path().join(name));
    let told = stdout(command.args(["--json", "--split-size", size]));
    let told: Value = serde_json::from_str(&told).unwrap();
    let files = told["files"].as_array().unwrap().iter();
    files.map(|f| f.as_str().unwrap().into()).collect()
}

#[test]
fn parts_are_as_large_as_the_plan_says_and_as_was_asked() {
    let dir = tempdir().unwrap();
    let whole = written(&dir, "one.gguf", "1GB");
    assert_eq!(whole, [dir.path().join("one.gguf")]);
    let parts = written(&dir, "m.gguf", "700kB");
    assert!(parts.len() > 2);
    let mut planned = compress("q4_k_m", &dir.path().join("m.gguf"));
    let told = stdout(planned.args(["--dry-run", "--split-size", "700kB"]));
    for (i, part) in parts.iter().enumerate() {
        assert_eq!(*part, name(&dir.path().join("m"), i + 1, parts.len()));
        let bytes = part.metadata().unwrap().len();
        assert!(bytes <= 700_000);
        assert!(told.contains(&format!("part {}: ", i + 1)), "{told}");
        assert!(
            told.contains(&format!(" tensors, {bytes} bytes\n")),
            "{told}"
        );
    }
}

#[test]
fn outputs_are_written_in_parts_that_are_verified_and_run() {
    let dir = tempdir().unwrap();
    let whole = dir.path().join("whole.gguf");
    stdout(&mut compress("q4_k_m", &whole));
    let parts = written(&dir, "m.gguf", "700kB");
    assert_eq!(perplexity(&parts[0]), perplexity(&whole));
    let verify = |part: &Path| {
        let mut command = dwindle(["verify", "--against"]);
        command.arg(checkpoint()).arg(part);
        command
    };
    let told = stdout(&mut verify(&parts[1]));
    says(
        &told,
        &["all checksums hold", &format!("{} files", parts.len())],
    );

    // One byte of one part.
    let sound = std::fs::read(&parts[2]).unwrap();
    let mut bytes = sound.clone();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&parts[2], bytes).unwrap();
    says(&refusal(&mut verify(&parts[0]), 1), &["damaged chunks: 1"]);
    says(
        &refusal(dwindle(["bench"]).arg(&parts[0]), 3),
        &[
            &*parts[2].file_name().unwrap().to_string_lossy(),
            "checksum differs",
        ],
    );
    // A part of another output that is like it.
    let mut command = compress("q4_k_m", &dir.path().join("n.gguf"));
    command.arg("--importance").arg(importance(&dir));
    stdout(command.args(["--split-size", "700kB"]));
    let other = name(&dir.path().join("n"), 3, parts.len());
    std::fs::copy(other, &parts[2]).unwrap();
    says(
        &refusal(dwindle(["verify"]).arg(&parts[0]), 3),
        &["were not written together"],
    );
    std::fs::write(&parts[2], sound).unwrap();
    stdout(&mut verify(&parts[2]));
}

/// Importance weights of the fixture.
fn importance(dir: &TempDir) -> PathBuf {
    let stats = dir.path().join("model.stats");
    let mut command = dwindle(["calibrate", "--chunks", "4", "--ctx", "128", "--text"]);
    command
        .arg(fixture("kjv-calibration.txt"))
        .arg(checkpoint());
    stdout(command.arg("-o").arg(&stats));
    stats
}

#[test]
fn a_size_that_no_tensor_fits_and_containers_in_parts_are_refused() {
    let dir = tempdir().unwrap();
    let output = dir.path().join("m.gguf");
    let mut command = compress("q4_k_m", &output);
    says(
        &refusal(command.args(["--split-size", "100kB"]), 3),
        &[
            "`token_embd.weight`",
            "more than the 100000 that a file may have",
        ],
    );
    let mut command = compress("source", &dir.path().join("m.dwn"));
    says(
        &refusal(command.args(["--split-size", "1GB"]), 2),
        &["`--split-size` is for `.gguf`", "a container is one file"],
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
