//! The program as a user runs it, on the model that the project ships.

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::Command;

/// The compiled program.
pub const DWINDLE: &str = env!("CARGO_BIN_EXE_dwindle");

/// A file or folder of `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

/// The model that the project ships.
pub fn checkpoint() -> PathBuf {
    fixture("kjv-llama")
}

/// `dwindle` with these arguments.
pub fn dwindle<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(DWINDLE);
    command.args(args);
    command
}

/// `dwindle compress` of the fixture with a preset.
pub fn compress(preset: &str, output: &Path) -> Command {
    let mut command = dwindle(["compress"]);
    command.arg(checkpoint()).args(["--preset", preset]);
    command.arg("--output").arg(output);
    command
}

/// What a command that must succeed prints on stdout.
#[track_caller]
pub fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{command:?} says {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The sentence of a command that must fail with this exit code.
#[track_caller]
pub fn refusal(command: &mut Command, code: i32) -> String {
    sentence(&command.output().unwrap(), code)
}

/// The sentence with which a process ended, and its hint in a second line where it has one.
#[track_caller]
pub fn sentence(output: &Output, code: i32) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    // Notes come before the sentence, and a slow machine says how far it is.
    let passing = |line: &&str| line.starts_with("note: ") || line.contains(" %, about ");
    let mut lines = stderr.lines().filter(|line| !passing(line));
    let mut next = |prefix: &str| {
        let line = lines.next()?;
        let text = line.strip_prefix(prefix);
        Some(text.unwrap_or_else(|| panic!("expected `{prefix}`: {line}")))
    };
    let error = next("error: ").expect("a sentence on stderr");
    let hint = next("hint: ");
    assert_eq!(lines.next(), None, "one sentence and one hint only");
    hint.map_or(error.to_string(), |hint| format!("{error}\n{hint}"))
}

/// Asserts that a text has each of these pieces.
#[track_caller]
pub fn says(text: &str, pieces: &[&str]) {
    for piece in pieces {
        assert!(text.contains(piece), "`{piece}` is not in: {text}");
    }
}

/// Names of the files in a folder, hidden ones too, sorted.
pub fn listing(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
