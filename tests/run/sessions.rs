//! A text goes on from what was kept of its beginning.

use std::path::Path;

use crate::common::program::{checkpoint, dwindle, fixture, refusal, says};
use crate::common::record::Record;

const PROMPT: &str = "In the beginning God created the heaven and the earth. And the earth was";

/// What the model says behind a prompt, and what the program says of it.
fn said(model: &Path, prompt: &str, tokens: &str, options: &[&str]) -> (String, String) {
    let mut run = dwindle(["run", "--temp", "0", "-n", tokens, "-p", prompt]);
    let output = run.arg(model).args(options).output().unwrap();
    let words = |bytes| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", words(&output.stderr));
    (words(&output.stdout), words(&output.stderr))
}

#[test]
fn every_kind_of_memory_goes_on_as_if_it_had_read_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let longer = format!("{PROMPT} without form, and void");
    // Plain attention, learned positions, a window, latent attention, and recurrent layers beside attention.
    for name in [
        "llama",
        "gpt2",
        "gemma3",
        "deepseek",
        "granitehybrid",
        "lfm2",
    ] {
        let model = folder.path().join(name);
        Record::of(name).write(&model);
        let [whole, after] = [PROMPT, &longer].map(|p| said(&model, p, "12", &[]).0);
        for file in ["session.bin", "session.dwkv"] {
            let file = folder.path().join(file);
            let path = file.to_str().unwrap();
            said(&model, PROMPT, "0", &["--save-session", path]);
            let (text, notes) = said(&model, &longer, "12", &["--session", path]);
            assert_eq!(text, after, "{name}");
            says(&notes, &["prompt tokens behind"]);

            // What was said, too, is kept, and a window has moved by then.
            assert_eq!(
                said(&model, PROMPT, "12", &["--save-session", path]).0,
                whole,
                "{name}"
            );
            let (text, notes) = said(&model, PROMPT, "12", &["--session", path]);
            assert_eq!(text, whole, "{name}");
            let is_kept = notes.contains("1 prompt tokens behind");
            assert_eq!(
                is_kept,
                !["gemma3", "granitehybrid", "lfm2"].contains(&name),
                "{name}: {notes}"
            );
        }
    }
}

#[test]
fn a_session_serves_other_types_and_prompts_that_begin_alike() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session.dwkv");
    let path = file.to_str().unwrap();
    said(&checkpoint(), PROMPT, "12", &["--save-session", path]);
    for options in [
        &["--cache-type", "q8_0"][..],
        &["--cache-type", "q4_0"],
        &["--flash-attn", "off"],
        &["--cache-type", "f32", "--flash-attn", "on"],
    ] {
        let (text, notes) = said(
            &checkpoint(),
            PROMPT,
            "12",
            &[&["--session", path][..], options].concat(),
        );
        assert!(
            text.starts_with(PROMPT) && notes.contains("behind"),
            "{options:?}: {notes}"
        );
    }
    let other = "In the beginning God created a fish";
    let run = |options: &[&str]| {
        let mut run = dwindle(["run", "--temp", "0", "-n", "8", "-p", other]);
        run.arg(checkpoint()).args(options).output().unwrap()
    };
    let (fresh, behind) = (run(&[]), run(&["--session", path]));
    assert_eq!(fresh.stdout, behind.stdout);
    let notes = String::from_utf8(behind.stderr).unwrap();
    says(&notes, &["prompt tokens behind"]);
}

#[test]
fn a_session_may_name_a_token_that_was_not_read() {
    // As llama.cpp's programs save it: the last token of a prompt is read when the text goes on.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session.bin");
    let path = file.to_str().unwrap();
    said(&checkpoint(), PROMPT, "0", &["--save-session", path]);
    let bytes = std::fs::read(&file).unwrap();
    let count = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    let (head, memory) = bytes[12..].split_at(count as usize * 4);
    let more = [
        &bytes[..8],
        &(count + 1).to_le_bytes(),
        head,
        &7i32.to_le_bytes(),
        memory,
    ]
    .concat();
    std::fs::write(&file, more).unwrap();
    let whole = said(&checkpoint(), PROMPT, "12", &[]).0;
    let (text, notes) = said(&checkpoint(), PROMPT, "12", &["--session", path]);
    assert_eq!(text, whole);
    says(&notes, &["1 prompt tokens behind"]);
}

#[test]
fn sessions_of_other_models_and_damaged_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("session.bin");
    said(
        &checkpoint(),
        PROMPT,
        "12",
        &["--save-session", file.to_str().unwrap()],
    );
    let other = folder.path().join("other");
    Record::of("gpt2").write(&other);
    let run = |model: &Path, session: &Path| {
        let mut run = dwindle(["run", "-p", PROMPT]);
        run.arg(model).arg("--session").arg(session);
        refusal(&mut run, 3)
    };
    says(&run(&other, &file), &["session.bin", "another model"]);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.truncate(bytes.len() - 1);
    std::fs::write(&file, bytes).unwrap();
    says(&run(&checkpoint(), &file), &["session.bin", "ends early"]);
    says(
        &run(&checkpoint(), &fixture("README.md")),
        &["no state of llama.cpp's"],
    );
    let text = std::fs::read_to_string(fixture("kjv-heldout.txt")).unwrap();
    let words: Vec<&str> = text.split_whitespace().take(300).collect();
    let path = file.to_str().unwrap();
    said(
        &checkpoint(),
        &words.join(" "),
        "0",
        &["--save-session", path],
    );
    let mut short = dwindle(["run", "-p", PROMPT, "--ctx", "256", "--session", path]);
    let error = refusal(short.arg(checkpoint()), 3);
    says(&error, &["session.bin", "the context 256", "`--ctx` sets"]);
    let mut over = dwindle(["run", "-p", PROMPT, "--save-session"]);
    let notes = folder.path().join("notes.txt");
    std::fs::write(&notes, "Notes of some length").unwrap();
    let error = refusal(over.arg(&notes).arg(checkpoint()), 3);
    says(
        &error,
        &["notes.txt", "no llama.cpp state file", "left as it is"],
    );
}
