//! Files that are no plain files, or larger than anything of their kind, are refused before they are
//! read.

#![cfg(unix)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command as Std;
use std::time::Duration;

use assert_cmd::Command;
use dwindle::llama::context::{BatchToken, Context, ContextOptions};
use dwindle::llama::model::{LlamaError, Model, ModelOptions};
use dwindle_formats::gguf::{encode_header, read_header};
use serde_json::json;
use tempfile::{TempDir, tempdir};

use crate::common::program;
use crate::common::program::{DWINDLE, checkpoint, refusal, says};
use crate::common::spoilt;

const INPUT: i32 = 3;

/// Memory and time that end a command which reads without bound; none of these needs a tenth of it.
const ADDRESS_SPACE_KB: u32 = 8 << 20;
const DEADLINE: Duration = Duration::from_secs(120);

/// `dwindle` in a process whose memory is limited, so that a failing test doesn't end the machine.
fn dwindle<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -v {ADDRESS_SPACE_KB} && exec \"$0\" \"$@\"");
    command.arg("-c").arg(script).arg(DWINDLE).args(args);
    command.timeout(DEADLINE);
    command
}

/// The fixture as links, one file of which is to be replaced.
fn folder_without(name: &str) -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    for entry in std::fs::read_dir(checkpoint()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != name {
            symlink(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    let place = dir.path().join(name);
    (dir, place)
}

fn fifo(path: &Path) {
    assert!(Std::new("mkfifo").arg(path).status().unwrap().success());
}

/// A file of this length without content.
fn sparse(path: &Path, len: u64) {
    std::fs::File::create(path).unwrap().set_len(len).unwrap();
}

fn plan_of(checkpoint: &Path) -> Command {
    let mut command = dwindle(["compress", "--preset", "f16", "--dry-run"]);
    command.arg(checkpoint);
    command
}

/// Everything that a checkpoint's folder is read for, besides weights.
const FILES: [&str; 10] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "added_tokens.json",
    "merges.txt",
    "README.md",
    "chat_template.jinja",
];

/// Those of them that this checkpoint, or one made from it here, has no use for.
fn is_unused(name: &str) -> bool {
    let config = std::fs::read_to_string(checkpoint().join("tokenizer_config.json"));
    match name {
        // Only read where there are no merges in `tokenizer.json`, or pieces.
        "merges.txt" | "added_tokens.json" => true,
        "chat_template.jinja" => config.is_ok_and(|c| c.contains("chat_template")),
        _ => false,
    }
}

#[test]
fn a_checkpoints_files_must_be_plain_files() {
    for name in FILES.into_iter().filter(|n| !is_unused(n)) {
        let (dir, place) = folder_without(name);
        symlink("/dev/zero", &place).unwrap();
        let sentence = refusal(&mut plan_of(dir.path()), INPUT);
        says(&sentence, &[name, "device", "expected a regular file"]);

        std::fs::remove_file(&place).unwrap();
        fifo(&place);
        let sentence = refusal(&mut plan_of(dir.path()), INPUT);
        says(&sentence, &[name, "pipe", "expected a regular file"]);
    }
}

#[test]
fn a_checkpoints_files_have_a_largest_size() {
    for name in FILES.into_iter().filter(|n| !is_unused(n)) {
        let (dir, place) = folder_without(name);
        sparse(&place, 1 << 40);
        let sentence = refusal(&mut plan_of(dir.path()), INPUT);
        says(&sentence, &[name, "1099511627776 bytes", "the limit is"]);
    }
}

#[test]
fn links_to_plain_files_are_followed() {
    let (dir, place) = folder_without("config.json");
    symlink(checkpoint().join("config.json"), &place).unwrap();
    program::stdout(&mut plan_of(dir.path()));
}

#[test]
fn shards_and_models_must_be_plain_files() {
    let name = "model-00001-of-00002.safetensors";
    let (dir, place) = folder_without(name);
    fifo(&place);
    says(&refusal(&mut plan_of(dir.path()), INPUT), &[name]);

    let model = dir.path().join("model.gguf");
    fifo(&model);
    for command in ["inspect", "verify", "bench"] {
        let sentence = refusal(dwindle([command]).arg(&model), INPUT);
        says(&sentence, &["model.gguf", "pipe"]);
    }
    says(
        &refusal(&mut plan_of(&model), INPUT),
        &["model.gguf", "pipe"],
    );
    says(
        &refusal(dwindle(["inspect", "/dev/zero"]).arg("--json"), INPUT),
        &["/dev/zero", "device"],
    );
}

#[test]
fn recipes_texts_and_measurements_are_bounded() {
    let dir = tempdir().unwrap();
    let huge = dir.path().join("huge");
    sparse(&huge, 1 << 40);
    let pipe = dir.path().join("pipe");
    fifo(&pipe);
    let zero = PathBuf::from("/dev/zero");
    for (file, problem) in [(&huge, "limit"), (&pipe, "pipe"), (&zero, "device")] {
        let model = checkpoint();
        let given: [(&[&str], &[&str]); 3] = [
            (&["compress", "--dry-run"], &["--recipe"]),
            (&["eval"], &["--text"]),
            (
                &["compress", "--dry-run", "--preset", "f16"],
                &["--diagnosis"],
            ),
        ];
        for (command, option) in given {
            let mut command = dwindle(command);
            command.arg(&model).args(option).arg(file);
            says(&refusal(&mut command, INPUT), &[problem]);
        }
        let mut calibrate = dwindle(["calibrate"]);
        calibrate.arg(&model).arg("--text").arg(file);
        calibrate.arg("-o").arg(dir.path().join("s.safetensors"));
        says(&refusal(&mut calibrate, INPUT), &[problem]);
    }
}

/// A file of 130 kilobytes whose factors make a matrix of three gigabytes.
fn bomb() -> Vec<u8> {
    const SIDE: u64 = 32_000;
    spoilt::good_but(|file| {
        let v = &mut file.plan["tensors"][1];
        v["shape"] = json!([SIDE, SIDE + 8_000]);
        v["parts"][0]["shape"] = json!([SIDE, 1]);
        v["parts"][1]["shape"] = json!([1, SIDE + 8_000]);
        file.tensors[1].shape = vec![SIDE, 1];
        file.tensors[2].shape = vec![1, SIDE + 8_000];
        file.tensors[2].offset = 64 + 2 * SIDE;
        file.tensors[3].offset = 64 + 2 * SIDE + 2 * (SIDE + 8_000);
        file.chunks[1].1 = vec![2; 2 * SIDE as usize];
        file.chunks[2].1 = vec![3; 2 * (SIDE as usize + 8_000)];
    })
}

#[test]
fn a_small_file_is_not_exported_as_one_of_gigabytes() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("bomb.dwn");
    let bytes = bomb();
    assert!(bytes.len() < 150_000);
    std::fs::write(&path, bytes).unwrap();
    let output = dir.path().join("x.gguf");
    let mut export = dwindle(["export", "--memory", "256M"]);
    export.arg(&path).arg("--output").arg(&output);
    let sentence = refusal(&mut export, INPUT);
    says(&sentence, &["bomb.dwn`", "1024 times", "hostile"]);
    assert_eq!(program::listing(dir.path()), ["bomb.dwn"]);
}

#[test]
fn a_file_that_shrinks_while_it_runs_is_refused() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    program::stdout(&mut program::compress("q8_0", &path));
    // Without digests, so that llama.cpp maps the file itself.
    let bytes = std::fs::read(&path).unwrap();
    let header = read_header(&bytes).unwrap();
    let mut metadata = header.metadata.clone();
    metadata.retain(|key| !key.starts_with("dwindle."));
    let mut plain = encode_header(&metadata, &header.tensors, header.alignment);
    plain.extend(&bytes[header.data_start as usize..]);
    std::fs::write(&path, &plain).unwrap();

    let model = Model::load(&path, &ModelOptions::default()).unwrap();
    let mut context = Context::new(&model, &ContextOptions::default()).unwrap();
    let token = BatchToken {
        token: 1,
        position: 0,
        sequence: 0,
        logits: true,
    };
    context.decode(&[token]).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(plain.len() as u64 / 2).unwrap();
    let next = BatchToken {
        position: 1,
        ..token
    };
    let error = context.decode(&[next]).unwrap_err();
    assert!(matches!(error, LlamaError::Changed { .. }), "{error}");
    says(&error.to_string(), &["model.gguf`", "renaming"]);
}
