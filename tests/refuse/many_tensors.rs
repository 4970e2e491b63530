//! Work grows with the number of tensors, and not with its square.
//!
//! The bound is processor time, ten times and more what these need; what grows with the square needs
//! several times the bound.

#![cfg(unix)]

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use dwindle_formats::gguf::{Metadata, TensorLayout, TensorType, encode_header, lay_out};
use tempfile::{TempDir, tempdir};

use crate::common::program::{DWINDLE, refusal, says, stdout};

const TENSORS: usize = 60_000;
const PROCESSOR_SECONDS: u32 = 8;
const WIDTH: u64 = 32;

/// `dwindle` with a bound on its processor time.
fn dwindle<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -t {PROCESSOR_SECONDS} && exec \"$0\" \"$@\"");
    command.arg("-c").arg(script).arg(DWINDLE).args(args);
    command
}

fn write(path: &Path, metadata: &Metadata, tensors: Vec<TensorLayout>) {
    let (infos, len) = lay_out(tensors, 32).unwrap();
    let mut bytes = encode_header(metadata, &infos, 32);
    let value = 1f32.to_le_bytes();
    bytes.extend(value.iter().cycle().take(len as usize));
    std::fs::write(path, bytes).unwrap();
}

fn tensor(name: String, width: u64) -> TensorLayout {
    TensorLayout {
        name,
        shape: vec![width, 1],
        ty: TensorType::F32,
    }
}

/// A model of many small tensors, and importance weights for them.
fn many() -> (TempDir, PathBuf, PathBuf) {
    let dir = tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    metadata.set("llama.block_count", 1u32);
    for key in ["embedding_length", "feed_forward_length", "context_length"] {
        metadata.set(format!("llama.{key}"), WIDTH as u32);
    }
    metadata.set("llama.attention.head_count", 1u32);
    let weight = |i: usize| format!("blk.{i}.attn_q.weight");
    let tensors = (0..TENSORS).map(|i| tensor(weight(i), WIDTH));
    write(&model, &metadata, tensors.collect());

    let importance = dir.path().join("importance.gguf");
    let mut metadata = Metadata::new();
    metadata.set("general.type", "imatrix");
    let entry = |i: usize| {
        [
            tensor(format!("{}.in_sum2", weight(i)), WIDTH),
            tensor(format!("{}.counts", weight(i)), 1),
        ]
    };
    write(
        &importance,
        &metadata,
        (0..TENSORS).flat_map(entry).collect(),
    );
    (dir, model, importance)
}

#[test]
fn a_plan_and_a_file_of_many_tensors() {
    let (dir, model, importance) = many();
    let small = dir.path().join("small.gguf");
    let mut compress = dwindle(["compress", "--preset", "q8_0"]);
    compress.arg(&model).arg("--importance").arg(&importance);
    says(
        &stdout(compress.arg("--output").arg(&small)),
        &[&TENSORS.to_string()],
    );
    // A rule for each tensor.
    let mut again = dwindle(["compress", "--dry-run"]);
    again.arg(&model).arg("--types-of").arg(&small);
    says(&stdout(&mut again), &[&format!("{TENSORS} tensors")]);
    says(
        &stdout(dwindle(["verify"]).arg(&small)),
        &["checksums hold"],
    );
    let mut against = dwindle(["verify"]);
    stdout(against.arg(&small).arg("--against").arg(&model));
    stdout(dwindle(["inspect"]).arg(&small));
}

#[test]
fn more_tensors_than_any_model_has_are_not_given_to_llama_cpp() {
    let (_dir, model, _) = many();
    let mut run = dwindle(["run", "--prompt", "x", "-n", "1"]);
    says(
        &refusal(run.arg(&model), 3),
        &["model.gguf", &TENSORS.to_string(), "tensors"],
    );
}
