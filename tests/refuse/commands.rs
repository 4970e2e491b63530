//! What can't be done is refused with one sentence and the exit code of its kind.

use std::path::Path;
use std::process::Stdio;

use dwindle_formats::container::Container;
use dwindle_formats::gguf::{Metadata, encode_header};
use tempfile::tempdir;

use crate::common::program;
use crate::common::program::{
    DWINDLE, checkpoint, compress, dwindle, fixture, listing, refusal, says, stdout,
};

const USAGE: i32 = 2;
const INPUT: i32 = 3;

/// A copy of the fixture in which files can be missing.
fn copy_of_checkpoint(to: &Path, without: &str) {
    for entry in std::fs::read_dir(checkpoint()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != without {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// The refusal of a checkpoint.
#[track_caller]
fn of_checkpoint(checkpoint: &Path, code: i32) -> String {
    let dir = tempdir().unwrap();
    let mut command = dwindle(["compress", "--preset", "f16"]);
    command.arg(checkpoint).arg("--output");
    let sentence = refusal(command.arg(dir.path().join("x.gguf")), code);
    assert!(listing(dir.path()).is_empty());
    sentence
}

#[test]
fn an_unknown_preset_is_wrong_usage_and_the_known_ones_are_named() {
    let dir = tempdir().unwrap();
    let sentence = refusal(&mut compress("q4_k_x", &dir.path().join("x.gguf")), USAGE);
    says(&sentence, &["`q4_k_x`", "`k-proj`", "`q4_k_m`"]);
    assert!(listing(dir.path()).is_empty());
}

#[test]
fn an_unknown_extension_is_wrong_usage() {
    let sentence = refusal(&mut compress("f16", Path::new("model.bin")), USAGE);
    says(&sentence, &["`model.bin`", "`.gguf`", "`.dwn`"]);
}

#[test]
fn a_broken_recipe_names_its_rule_and_file() {
    let dir = tempdir().unwrap();
    let recipe = dir.path().join("recipe.toml");
    std::fs::write(&recipe, "type = \"f16\"\n[[rule]]\nmethod = \"magic\"\n").unwrap();
    let mut command = dwindle(["compress", "--dry-run"]);
    command.arg(checkpoint()).arg("--recipe").arg(&recipe);
    says(
        &refusal(&mut command, INPUT),
        &["recipe.toml`", "rule 1", "`magic`", "`svd`"],
    );
}

#[test]
fn a_missing_checkpoint_is_refused() {
    let sentence = of_checkpoint(Path::new("no/such-model"), INPUT);
    says(&sentence, &["`no/such-model`", "hf download"]);
}

#[test]
fn a_folder_without_config_is_refused() {
    let dir = tempdir().unwrap();
    says(&of_checkpoint(dir.path(), INPUT), &["`config.json`"]);
    copy_of_checkpoint(dir.path(), "config.json");
    says(&of_checkpoint(dir.path(), INPUT), &["`config.json`"]);
}

#[test]
fn a_missing_shard_is_refused() {
    let dir = tempdir().unwrap();
    let shard = "model-00002-of-00002.safetensors";
    copy_of_checkpoint(dir.path(), shard);
    says(&of_checkpoint(dir.path(), INPUT), &[shard, "1 of 2"]);
}

#[test]
fn a_file_that_is_no_gguf_is_refused() {
    let text = fixture("kjv-heldout.txt");
    for command in ["inspect", "run", "bench"] {
        let mut command = dwindle([command]);
        command.arg(&text);
        if command.get_args().next().is_some_and(|a| a == "run") {
            command.args(["--prompt", "x"]);
        }
        says(
            &refusal(&mut command, INPUT),
            &["kjv-heldout.txt`", "not a GGUF file"],
        );
    }
    says(&of_checkpoint(&text, INPUT), &["kjv-heldout.txt`"]);
    let dir = tempdir().unwrap();
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, "").unwrap();
    says(
        &refusal(dwindle(["inspect"]).arg(&empty), INPUT),
        &["ends at byte 0"],
    );
    says(
        &refusal(dwindle(["inspect"]).arg(dir.path()), INPUT),
        &["has no `config.json`"],
    );
    let missing = dir.path().join("missing.gguf");
    says(
        &refusal(dwindle(["inspect"]).arg(&missing), INPUT),
        &["missing.gguf`", "No such file"],
    );
}

#[test]
fn a_file_of_another_program_has_nothing_to_verify() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("foreign.gguf");
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", "llama");
    std::fs::write(&path, encode_header(&metadata, &[], 32)).unwrap();
    says(
        &refusal(dwindle(["verify"]).arg(&path), INPUT),
        &["foreign.gguf`", "no checksums", "--preset source"],
    );
}

#[test]
fn a_damaged_file_fails_the_check_by_part_chunk_and_digests() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    stdout(&mut compress("q8_0", &path));
    let mut bytes = std::fs::read(&path).unwrap();
    let container = Container::read(&bytes).unwrap();
    let index = 7;
    let name = container.plan.parts().nth(index).unwrap().name.clone();
    bytes[container.range(index).start + 5] ^= 0x10;
    std::fs::write(&path, &bytes).unwrap();

    let output = dwindle(["verify"]).arg(&path).output().unwrap();
    let sentence = program::sentence(&output, 1);
    says(&sentence, &["model.gguf`", "damaged chunks: 1;"]);
    let found = String::from_utf8(output.stdout).unwrap();
    says(
        &found,
        &[&format!("part `{name}`, chunk 0"), "expected", "found"],
    );
    let is_digest = |w: &&str| w.len() == 64 && w.bytes().all(|b| b.is_ascii_hexdigit());
    let words = found.split(|c: char| !c.is_ascii_alphanumeric());
    assert_eq!(words.filter(is_digest).count(), 2, "{found}");

    let output = dwindle(["verify", "--json"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["damage"].as_array().unwrap().len(), 1);

    // Nobody runs or exports what is damaged.
    let mut run = dwindle(["run", "--prompt", "x"]);
    says(
        &refusal(run.arg(&path), INPUT),
        &[&name, "checksum differs"],
    );
    let mut export = dwindle(["export"]);
    export
        .arg(&path)
        .arg("--output")
        .arg(dir.path().join("x.gguf"));
    says(&refusal(&mut export, INPUT), &[&name, "checksum differs"]);
    assert_eq!(listing(dir.path()), ["model.gguf"]);

    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    refusal(dwindle(["verify"]).arg(&path), 1);
}

#[test]
fn a_text_that_is_too_short_or_no_utf8_is_refused() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    stdout(&mut compress("q8_0", &path));
    let text = dir.path().join("text.txt");
    let eval = |content: &[u8]| {
        std::fs::write(&text, content).unwrap();
        let mut command = dwindle(["eval"]);
        refusal(command.arg(&path).arg("--text").arg(&text), INPUT)
    };
    says(&eval(b"In the beginning"), &["tokens", "512"]);
    says(&eval(b""), &["tokens", "512"]);
    says(&eval(&[0xff; 64]), &["text.txt`", "UTF-8"]);
}

#[test]
fn places_where_no_file_can_stand_are_refused_by_name() {
    let dir = tempdir().unwrap();
    let missing = dir.path().join("missing");
    says(
        &refusal(&mut compress("f16", &missing.join("x.gguf")), INPUT),
        &["missing/x.gguf` can't be written", "no folder"],
    );
    assert!(!missing.exists());
    let folder = dir.path().join("folder.gguf");
    std::fs::create_dir(&folder).unwrap();
    says(
        &refusal(&mut compress("f16", &folder), INPUT),
        &["folder.gguf` can't be written", "it is a folder"],
    );
    assert_eq!(listing(dir.path()), ["folder.gguf"]);
    assert!(listing(&folder).is_empty());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    stdout(&mut compress("q8_0", &path));
    for args in [&["inspect", "--metadata"][..], &["inspect", "--json"]] {
        let mut child = std::process::Command::new(DWINDLE)
            .args(args)
            .arg(&path)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""));
    }
}

#[test]
fn one_file_of_several_is_no_model() {
    let dir = tempdir().unwrap();
    let text = fixture("kjv-heldout.txt");
    let part = |name: &str, count: Option<u16>| {
        let path = dir.path().join(name);
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", "llama");
        if let Some(count) = count {
            metadata.set("split.no", 1u16);
            metadata.set("split.count", count);
        }
        std::fs::write(&path, encode_header(&metadata, &[], 32)).unwrap();
        path
    };
    let by_key = ["part 2 of a model in 3 GGUF files", "gguf-split --merge"];
    for (path, pieces) in [
        (part("by-key.gguf", Some(3)), by_key),
        (
            part("m-00002-of-00003.gguf", None),
            [
                "part 1 of 3 of the model is missing",
                "m-00001-of-00003.gguf",
            ],
        ),
    ] {
        for words in [
            "compress --dry-run --preset q8_0",
            "run -p x",
            "bench",
            "verify",
            "inspect",
            "calibrate -o s --text",
            "eval --text",
            "export -o x.gguf",
        ] {
            let mut command = dwindle(words.split(' '));
            command.current_dir(dir.path());
            if words.ends_with("--text") {
                command.arg(&text);
            }
            let sentence = refusal(command.arg(&path), INPUT);
            match words.starts_with("export") {
                true => says(&sentence, &by_key),
                false => says(&sentence, &pieces),
            }
        }
        let mut command = compress("q8_0", &dir.path().join("x.gguf"));
        let sentence = refusal(command.arg("--importance").arg(&path), INPUT);
        says(&sentence, &[path.file_name().unwrap().to_str().unwrap()]);
    }
    // A file that was joined says so, and is not refused for it.
    let whole = part("whole.gguf", Some(0));
    stdout(dwindle(["inspect"]).arg(whole));
    let whole = part("m-00001-of-00001.gguf", Some(1));
    stdout(dwindle(["inspect"]).arg(whole));
}
