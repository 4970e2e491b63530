//! Killed, crowded out, refused by the system: the older file stays or the new one is complete,
//! and nothing else is left.
#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use dwindle_formats::gguf::read_header;
use tempfile::{TempDir, tempdir};

use super::mark;
use crate::common::program::{
    DWINDLE, checkpoint, compress, dwindle, fixture, listing, refusal, says, sentence, stdout,
};

const INPUT: i32 = 3;
/// What stood under the output's name before. It need not be a model.
const OLDER: &[u8] = b"the older file";

/// `dwindle compress`, slowed down so that there is something to interrupt.
fn slow(preset: &str, output: &Path) -> Command {
    let mut command = Command::new(DWINDLE);
    command.args(["compress", "--threads", "1", "--memory", "1K", "--json"]);
    command.arg(checkpoint()).args(["--preset", preset]);
    command.arg("--output").arg(output);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What an undisturbed run writes.
fn undisturbed(preset: &str, name: &str) -> Vec<u8> {
    let dir = tempdir().unwrap();
    let path = dir.path().join(name);
    assert!(slow(preset, &path).output().unwrap().status.success());
    std::fs::read(path).unwrap()
}

/// A run beside an older file, killed when it reaches a mark: at 0 its temporary file is there, at n
/// its journal names n of its tensors, and after all of them the file has its name.
fn killed_at(step: usize, tensors: usize, preset: &str, path: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let temporary = path.with_file_name(format!(".{name}.part"));
    let reached = || match step {
        0 => temporary.exists(),
        n if n <= tensors => mark::journaled(path) >= n,
        _ => std::fs::metadata(path).is_ok_and(|file| file.len() != OLDER.len() as u64),
    };
    for _ in 0..mark::ATTEMPTS {
        std::fs::write(path, OLDER).unwrap();
        let mut child = slow(preset, path).spawn().unwrap();
        let in_time = mark::reached(&mut child, reached);
        child.kill().unwrap();
        child.wait().unwrap();
        if in_time {
            return;
        }
    }
    panic!("every run was done before mark {step} was seen");
}

/// Kills `kills` runs at marks from their beginning to their end, each followed by one that may
/// finish. Returns the number of tensors that the latter did not have to make again.
fn kill_and_resume(preset: &str, name: &str, kills: usize) -> u64 {
    let whole = undisturbed(preset, name);
    let tensors = read_header(&whole).unwrap().tensors.len();
    let mut resumed = 0;
    for kill in 0..kills {
        let dir = tempdir().unwrap();
        let path = dir.path().join(name);
        killed_at(kill * (tensors + 1) / (kills - 1), tensors, preset, &path);
        let named = mark::journaled(&path) as u64;
        let left = std::fs::read(&path).unwrap();
        assert!(
            left == OLDER || left == whole,
            "kill {kill}: a damaged file"
        );

        let output = slow(preset, &path).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["resumed_tensors"], named, "kill {kill}");
        resumed += named;
        assert!(
            std::fs::read(&path).unwrap() == whole,
            "kill {kill}: other bytes"
        );
        assert_eq!(listing(dir.path()), [name], "kill {kill}");
        stdout(dwindle(["verify"]).arg(&path));
    }
    resumed
}

#[test]
fn fifty_kills_damage_nothing_and_the_next_run_gives_the_same_bytes() {
    let resumed =
        kill_and_resume("q4_k_m", "model.gguf", 25) + kill_and_resume("f16", "model.dwn", 25);
    assert!(resumed > 0, "no run went on where another was killed");
}

#[test]
fn what_a_killed_run_with_other_wishes_left_is_not_used() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let mut child = slow("q4_k_m", &path).spawn().unwrap();
    assert!(mark::reached(&mut child, || mark::journaled(&path) >= 20));
    child.kill().unwrap();
    child.wait().unwrap();
    stdout(&mut compress("q8_0", &path));
    let whole = undisturbed("q8_0", "model.gguf");
    assert!(std::fs::read(&path).unwrap() == whole);
    assert_eq!(listing(dir.path()), ["model.gguf"]);
}

/// Sends what Ctrl-C sends.
fn interrupt(child: &Child) {
    let id = child.id().to_string();
    let status = Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert!(status.success());
}

#[test]
fn an_interrupted_run_says_that_the_same_command_goes_on() {
    for _ in 0..mark::ATTEMPTS {
        let dir = tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let mut child = slow("q4_k_m", &path).spawn().unwrap();
        mark::reached(&mut child, || mark::journaled(&path) >= 8);
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            continue;
        }
        assert_eq!(output.status.signal(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        says(
            &said,
            &["no output was written", "the same command goes on"],
        );
        assert!(!path.exists());
        let output = slow("q4_k_m", &path).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(report["resumed_tensors"].as_u64().unwrap() >= 8);
        return;
    }
    panic!("every run was done before it was interrupted");
}

#[test]
fn an_interrupted_calibration_leaves_no_file() {
    for _ in 0..mark::ATTEMPTS {
        let dir = tempdir().unwrap();
        let mut command = Command::new(DWINDLE);
        command.args(["calibrate", "--chunks", "20"]);
        command.arg(checkpoint()).arg("--text");
        command.arg(fixture("kjv-calibration.txt"));
        command.arg("-o").arg(dir.path().join("stats.safetensors"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        mark::reached(&mut child, || !listing(dir.path()).is_empty());
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            continue;
        }
        let said = String::from_utf8(output.stderr).unwrap();
        says(&said, &["interrupted", "no output was written"]);
        assert_eq!(listing(dir.path()), Vec::<String>::new());
        return;
    }
    panic!("every run was done before it was interrupted");
}

#[test]
fn a_file_that_another_process_writes_is_refused_as_busy() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, OLDER).unwrap();
    let other = std::fs::File::create(dir.path().join(".model.gguf.part")).unwrap();
    other.try_lock().unwrap();
    says(
        &refusal(&mut compress("f16", &path), INPUT),
        &["model.gguf` is being written by another process", "wait"],
    );
    assert_eq!(std::fs::read(&path).unwrap(), OLDER);
    drop(other);
    stdout(&mut compress("f16", &path));
    assert_eq!(listing(dir.path()), ["model.gguf"]);
}

#[test]
fn of_several_writers_at_once_each_is_done_or_refused() {
    let whole = undisturbed("q8_0", "model.gguf");
    for _ in 0..5 {
        let dir = tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let writers: Vec<_> = (0..4)
            .map(|_| slow("q8_0", &path).spawn().unwrap())
            .collect();
        let outputs: Vec<Output> = (writers.into_iter())
            .map(|child| child.wait_with_output().unwrap())
            .collect();
        let (done, refused): (Vec<_>, Vec<_>) =
            outputs.iter().partition(|output| output.status.success());
        assert!(!done.is_empty());
        for output in refused {
            says(&sentence(output, INPUT), &["another process"]);
        }
        assert!(std::fs::read(&path).unwrap() == whole);
        assert_eq!(listing(dir.path()), ["model.gguf"]);
    }
}

/// A folder that everybody may enter, with an older output in it.
fn open_folder() -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, OLDER).unwrap();
    (dir, path)
}

fn assert_untouched(dir: &TempDir, path: &Path) {
    assert_eq!(std::fs::read(path).unwrap(), OLDER);
    assert_eq!(listing(dir.path()), ["model.gguf"]);
}

#[test]
fn a_limit_on_the_files_size_leaves_the_older_file_and_nothing_else() {
    // From not even a header to nearly all.
    for kib in [1, 64, 1000, 6000] {
        let (dir, path) = open_folder();
        let script = format!("ulimit -f {kib}; trap '' XFSZ; exec \"$@\"");
        let output = Command::new("bash")
            .args(["-c", &script, "bash", DWINDLE, "compress"])
            .arg(checkpoint())
            .args(["--preset", "f16", "--output"])
            .arg(&path)
            .output()
            .unwrap();
        let said = sentence(&output, INPUT);
        says(&said, &["model.gguf` can't be written", "too large"]);
        assert_untouched(&dir, &path);
    }
}

/// Whether this process may mount file systems of its own.
fn may_mount() -> bool {
    let mount = "mount -t tmpfs -o size=64k tmpfs \"$1\"";
    let dir = tempdir().unwrap();
    Command::new("unshare")
        .args(["--mount", "bash", "-c", mount, "bash"])
        .arg(dir.path())
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Compresses into a file system of its own, mounted with these options, that holds an older file.
/// Gives the process's end; stdout is a listing of the folder and the older file.
fn compress_into(options: &str) -> Option<Output> {
    if !may_mount() {
        eprintln!("skipped: this user may not mount file systems");
        return None;
    }
    let dir = tempdir().unwrap();
    let script = format!(
        "cd \"$1\" && mount -t tmpfs -o size=1m tmpfs . && cd \"$1\" && \
         printf 'the older file' > model.gguf && mount -o remount,{options} . && \
         \"$2\" compress \"$3\" --preset f16 --output model.gguf; \
         code=$?; ls -A; cat model.gguf; exit $code"
    );
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", &script, "bash"])
        .arg(dir.path())
        .arg(DWINDLE)
        .arg(checkpoint())
        .output();
    Some(output.unwrap())
}

#[test]
fn a_full_disk_leaves_the_older_file_and_nothing_else() {
    for size in ["size=1m", "size=64k", "size=4k"] {
        let Some(output) = compress_into(size) else {
            return;
        };
        says(
            &sentence(&output, INPUT),
            &["`model.gguf` can't be written", "No space left"],
        );
        assert_eq!(output.stdout, b"model.gguf\nthe older file", "{size}");
    }
}

#[test]
fn a_read_only_file_system_is_refused() {
    let Some(output) = compress_into("ro") else {
        return;
    };
    says(
        &sentence(&output, INPUT),
        &["`model.gguf` can't be written", "Read-only file system"],
    );
    assert_eq!(output.stdout, b"model.gguf\nthe older file");
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout.trim_ascii() == b"0"
}

/// A program run by somebody whom permissions bind, which they do not do for root.
fn bound(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    command.arg(program);
    command
}

/// The program and the checkpoint where anybody may read them.
fn public_copy() -> (TempDir, PathBuf, PathBuf) {
    let dir = tempdir().unwrap();
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    };
    allow(dir.path(), 0o755);
    let program = dir.path().join("dwindle");
    std::fs::copy(DWINDLE, &program).unwrap();
    allow(&program, 0o755);
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    allow(&model, 0o755);
    for entry in std::fs::read_dir(checkpoint()).unwrap() {
        let entry = entry.unwrap();
        let copy = model.join(entry.file_name());
        std::fs::copy(entry.path(), &copy).unwrap();
        allow(&copy, 0o644);
    }
    (dir, program, model)
}

#[test]
fn a_folder_without_permission_to_write_is_refused() {
    let (_public, program, model) = public_copy();
    let (dir, path) = open_folder();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o555)).unwrap();
    let output = bound(&program)
        .arg("compress")
        .arg(&model)
        .args(["--preset", "f16", "--output"])
        .arg(&path)
        .output()
        .unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    says(
        &sentence(&output, INPUT),
        &["model.gguf` can't be written", "Permission denied"],
    );
    assert_untouched(&dir, &path);
}

#[test]
fn a_checkpoint_without_permission_to_read_is_refused() {
    let (_public, program, model) = public_copy();
    let (dir, path) = open_folder();
    let everybody = PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(dir.path(), everybody).unwrap();
    let shard = model.join("model-00002-of-00002.safetensors");
    std::fs::set_permissions(&shard, PermissionsExt::from_mode(0o000)).unwrap();
    let output = bound(&program)
        .arg("compress")
        .arg(&model)
        .args(["--preset", "f16", "--output"])
        .arg(&path)
        .output()
        .unwrap();
    says(
        &sentence(&output, INPUT),
        &["model-00002-of-00002.safetensors", "Permission denied"],
    );
    assert_untouched(&dir, &path);
}
