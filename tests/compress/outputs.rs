//! What a command writes never takes the place of what it reads, nor of anything that is no plain file.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use dwindle_formats::gguf::TensorType;
use tempfile::{TempDir, tempdir};

use super::mark;
use crate::common::program::{
    DWINDLE, checkpoint, dwindle, fixture, listing, refusal, says, stdout,
};
use crate::common::tiny::tiny;

const USAGE: i32 = 2;
const INPUT: i32 = 3;

/// Files of every kind that commands read, made once.
fn originals() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let dir = tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        tiny(TensorType::F16).write(&at("m.gguf"));
        let text = std::fs::read(fixture("kjv-heldout.txt")).unwrap();
        std::fs::write(at("t.txt"), &text[..6000]).unwrap();
        std::fs::copy(at("t.txt"), at("u.txt")).unwrap();
        let mut command = in_folder(dir.path(), "calibrate m.gguf --text t.txt --chunks 4 -c 64");
        stdout(command.args(["-t", "1", "-o", "s", "--imatrix", "i.gguf"]));
        for name in ["k.gguf", "l.gguf"] {
            let mut command = in_folder(dir.path(), "compress m.gguf --preset q8_0 -o");
            stdout(command.arg(name));
        }
        std::fs::create_dir(at("ck")).unwrap();
        for entry in std::fs::read_dir(checkpoint()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), at("ck").join(entry.file_name())).unwrap();
        }
        dir
    });
    folder.path()
}

/// The same files to be endangered.
fn copies() -> TempDir {
    let dir = tempdir().unwrap();
    let copy = |from: &Path, to: &Path| {
        for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
    };
    copy(originals(), dir.path());
    std::fs::create_dir(dir.path().join("ck")).unwrap();
    copy(&originals().join("ck"), &dir.path().join("ck"));
    dir
}

/// `dwindle` with these words as arguments, in a folder.
fn in_folder(folder: &Path, words: &str) -> assert_cmd::Command {
    let mut command = dwindle(words.split_whitespace());
    command.current_dir(folder);
    command
}

/// Every file under a folder, with its bytes.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        match path.is_dir() {
            true => all.extend(contents(&path)),
            false => drop(all.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    all
}

/// Commands that would write over what they read, or twice the same, and the file that they name.
const OVERWRITES: &[(&str, &str)] = &[
    ("calibrate m.gguf --text t.txt -o m.gguf", "m.gguf"),
    ("calibrate m.gguf --text t.txt -o ./ck/../m.gguf", "m.gguf"),
    ("calibrate m.gguf --text t.txt -o hard.gguf", "hard.gguf"),
    ("calibrate m.gguf --text t.txt -o t.txt", "t.txt"),
    ("calibrate m.gguf --text t.txt --imatrix m.gguf", "m.gguf"),
    (
        "calibrate m.gguf --text t.txt --lora l.gguf -o l.gguf",
        "l.gguf",
    ),
    (
        "calibrate ck --text t.txt -o ck/model-00001-of-00002.safetensors",
        "model-00001-of-00002.safetensors",
    ),
    (
        "calibrate ck --text t.txt -o ck/tokenizer.json",
        "tokenizer.json",
    ),
    ("calibrate m.gguf --text t.txt -o new --imatrix new", "new"),
    (
        "calibrate m.gguf --text t.txt -o new --imatrix ck/../new",
        "new",
    ),
    ("calibrate m.gguf --text t.txt -o s --imatrix s", "`s`"),
    ("diagnose m.gguf --stats s -o m.gguf", "m.gguf"),
    ("diagnose m.gguf --stats s -o s", "`s`"),
    ("diagnose m.gguf --stats s --text t.txt -o t.txt", "t.txt"),
    ("export k.gguf -o k.gguf", "k.gguf"),
    ("compress m.gguf --preset q8_0 -o m.gguf", "m.gguf"),
    ("compress m.gguf --preset q8_0 -o hard.gguf", "hard.gguf"),
    ("compress m.gguf --types-of k.gguf -o k.gguf", "k.gguf"),
    (
        "compress m.gguf --preset q8_0 --importance i.gguf -o i.gguf",
        "i.gguf",
    ),
    ("compress .x.gguf.part --preset q8_0 -o x.gguf", "x.gguf"),
    (
        "compress m.gguf --size 50% --text t.txt --gate t.gguf -o t.gguf",
        "t.gguf",
    ),
    ("sweep m.gguf --text t.txt --svg t.txt", "t.txt"),
    ("sweep m.gguf --text t.txt --svg m.gguf", "m.gguf"),
    (
        "sweep m.gguf --text t.txt --eval u.txt --svg u.txt",
        "u.txt",
    ),
    (
        "eval m.gguf --text t.txt --reference k.gguf --cache m.gguf",
        "m.gguf",
    ),
    (
        "eval m.gguf --text t.txt --reference k.gguf --cache k.gguf",
        "k.gguf",
    ),
    (
        "eval m.gguf --text t.txt --reference k.gguf --cache t.txt",
        "t.txt",
    ),
    (
        "eval m.gguf --text t.txt --reference ck --cache ck/config.json",
        "config.json",
    ),
];

#[test]
fn no_output_takes_the_place_of_an_input_or_of_another_output() {
    let dir = copies();
    std::fs::hard_link(dir.path().join("m.gguf"), dir.path().join("hard.gguf")).unwrap();
    std::fs::copy(dir.path().join("m.gguf"), dir.path().join(".x.gguf.part")).unwrap();
    let before = contents(dir.path());
    for (words, named) in OVERWRITES {
        let sentence = refusal(&mut in_folder(dir.path(), words), USAGE);
        says(&sentence, &[named, "choose another"]);
        assert!(contents(dir.path()) == before, "{words}");
    }
}

/// Each command that writes, with its output to be named last.
const WRITERS: [&str; 7] = [
    "compress m.gguf --preset q8_0 -o",
    "calibrate m.gguf --text t.txt --chunks 2 -c 64 -t 1 -o",
    "calibrate m.gguf --text t.txt --chunks 2 -c 64 -t 1 --imatrix",
    "diagnose m.gguf --stats s -o",
    "export k.gguf -o",
    "sweep m.gguf --text t.txt --svg",
    "eval m.gguf --text t.txt -c 64 --chunks 2 --reference k.gguf --cache",
];

#[test]
fn only_plain_files_are_replaced() {
    let dir = copies();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("target"), "precious").unwrap();
    symlink("target", at("link.gguf")).unwrap();
    symlink("nowhere", at("dangling.gguf")).unwrap();
    std::fs::create_dir(at("folder.gguf")).unwrap();
    let made = Command::new("mkfifo").arg(at("pipe.gguf")).status();
    assert!(made.unwrap().success());
    let socket = std::os::unix::net::UnixListener::bind(at("socket.gguf")).unwrap();
    let before = listing(dir.path());
    for writer in WRITERS {
        for (place, kind) in [
            ("link.gguf", "symbolic link"),
            ("dangling.gguf", "symbolic link"),
            ("folder.gguf", "it is a folder"),
            ("pipe.gguf", "named pipe"),
            ("socket.gguf", "socket"),
            ("missing/x.gguf", "no folder"),
        ] {
            let mut command = in_folder(dir.path(), writer);
            let sentence = refusal(command.arg(place), INPUT);
            says(&sentence, &[place, "can't be written", kind]);
            assert_eq!(listing(dir.path()), before, "{writer} {place}");
        }
    }
    drop(socket);
    let kind = |name: &str| std::fs::symlink_metadata(at(name)).unwrap().file_type();
    assert!(kind("link.gguf").is_symlink() && kind("dangling.gguf").is_symlink());
    assert!(kind("pipe.gguf").is_fifo() && kind("folder.gguf").is_dir());
    assert_eq!(std::fs::read(at("target")).unwrap(), b"precious");
}

#[test]
fn a_cache_is_not_written_over_a_file_of_another_kind() {
    let dir = copies();
    let before = contents(dir.path());
    let words = "eval m.gguf --text t.txt -c 64 --chunks 2 --reference k.gguf --cache u.txt";
    let sentence = refusal(&mut in_folder(dir.path(), words), INPUT);
    says(&sentence, &["u.txt", "holds no predictions"]);
    assert!(contents(dir.path()) == before);
}

#[test]
fn planted_siblings_are_not_followed() {
    for sibling in [".x.gguf.part", ".x.gguf.journal"] {
        for hard in [false, true] {
            let dir = copies();
            let (victim, planted) = (dir.path().join("u.txt"), dir.path().join(sibling));
            match hard {
                true => std::fs::hard_link(&victim, &planted).unwrap(),
                false => symlink("u.txt", &planted).unwrap(),
            }
            let before = std::fs::read(&victim).unwrap();
            let words = "compress m.gguf --preset q8_0 -o x.gguf";
            let sentence = refusal(&mut in_folder(dir.path(), words), INPUT);
            says(&sentence, &["x.gguf", sibling, "link", "remove it"]);
            assert_eq!(std::fs::read(&victim).unwrap(), before, "{sibling} {hard}");
            assert!(!dir.path().join("x.gguf").exists());
        }
    }
}

#[test]
fn a_file_that_is_replaced_keeps_its_mode() {
    let dir = copies();
    let path = dir.path().join("x.gguf");
    for writer in WRITERS.iter().filter(|w| !w.starts_with("sweep")) {
        for mode in [0o600, 0o640] {
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            stdout(in_folder(dir.path(), writer).arg("x.gguf"));
            let metadata = std::fs::metadata(&path).unwrap();
            assert!(metadata.len() > 0);
            assert_eq!(metadata.permissions().mode() & 0o777, mode, "{writer}");
        }
    }
}

/// Names that are ours alone.
fn leftovers(folder: &Path) -> Vec<String> {
    let mut names = listing(folder);
    names.retain(|name| name.starts_with(".dwindle-"));
    names
}

/// Starts a command, whose temporaries belong in `folder`, and kills it when the first is there.
fn killed_at_its_first_temporary(command: &mut Command, folder: &Path) {
    let mut child: Child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(
        mark::reached(&mut child, || !leftovers(folder).is_empty()),
        "it left no mark"
    );
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_killed_runs_leave_lies_beside_the_output_and_goes_with_the_next_run() {
    let dir = copies();
    let text = std::fs::read(fixture("kjv-calibration.txt")).unwrap();
    std::fs::write(dir.path().join("t.txt"), text).unwrap();
    let (out, temporary) = (dir.path().join("out"), dir.path().join("tmp"));
    std::fs::create_dir(&out).unwrap();
    std::fs::create_dir(&temporary).unwrap();
    for (words, next) in [
        (
            "calibrate m.gguf --text t.txt -t 1 -o out/s",
            "calibrate m.gguf --text t.txt --chunks 1 -t 1 -o out/s",
        ),
        (
            "diagnose m.gguf --stats s --text t.txt --chunks 100 -c 128 -t 1 -o out/d",
            "diagnose m.gguf --stats s -o out/d",
        ),
        (
            "sweep m.gguf --text t.txt --sizes 60% --effort fast --workspace e --svg out/f.svg",
            "calibrate m.gguf --text t.txt --chunks 1 -t 1 -o out/s",
        ),
        (
            "eval m.gguf --text t.txt --reference k.gguf -t 1 --cache out/c",
            "eval m.gguf --text t.txt --chunks 1 --reference k.gguf -t 1 --cache out/c",
        ),
    ] {
        let mut command = Command::new(DWINDLE);
        command
            .args(words.split_whitespace())
            .current_dir(dir.path());
        killed_at_its_first_temporary(command.env("TMPDIR", &temporary), &out);
        assert!(listing(&temporary).is_empty(), "{words}");
        assert!(leftovers(dir.path()).is_empty(), "{words}");
        stdout(&mut in_folder(dir.path(), next));
        assert!(leftovers(&out).is_empty(), "{words}: {:?}", leftovers(&out));
    }
}
