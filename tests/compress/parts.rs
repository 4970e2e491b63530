//! A measurement that machines share.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use tempfile::tempdir;

use crate::common::program::{
    DWINDLE, checkpoint, dwindle, fixture, listing, refusal, says, stdout,
};

fn compress(workspaces: &Path) -> Command {
    let mut command = dwindle(["compress", "--size", "40%", "--effort", "fast"]);
    command.args(["--types", "q3_k,q6_k", "--chunks", "4"]);
    command.arg(checkpoint()).arg("--workspace").arg(workspaces);
    command.arg("--text").arg(fixture("kjv-calibration.txt"));
    command
}

fn measure(workspaces: &Path, part: &str) -> PathBuf {
    let said = stdout(compress(workspaces).args(["--part", part]));
    PathBuf::from(said.trim_end())
}

/// The file that is made with what the folder holds, and what is said meanwhile.
fn made(workspaces: &Path, name: &str) -> (Vec<u8>, String) {
    let file = workspaces.with_file_name(name);
    let output = compress(workspaces).arg("-o").arg(&file).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    (std::fs::read(&file).unwrap(), stderr)
}

#[test]
fn any_number_of_parts_gives_the_same_file() {
    let dir = tempdir().unwrap();
    let folder = |name: &str| dir.path().join(name);
    let (whole, _) = made(&folder("whole"), "whole.gguf");
    for count in [1, 2, 3, 7] {
        // Each on a machine of its own.
        let own = (1..=count).map(|i| folder(&format!("{count}-{i}")));
        let own: Vec<PathBuf> = own.collect();
        for (i, workspaces) in own.iter().enumerate() {
            measure(workspaces, &format!("{}/{count}", i + 1));
        }
        let joined = folder(&format!("joined-{count}"));
        let said = stdout(dwindle(["join", "--workspace"]).arg(&joined).args(&own));
        assert!(said.lines().count() >= count, "{said}");
        let (file, said) = made(&joined, &format!("{count}.gguf"));
        assert!(file == whole, "{count} parts");
        assert!(!said.contains("missing"), "{said}");
        // Nothing to bring together is left.
        let again = dwindle(["join", "--workspace"])
            .arg(&joined)
            .args(&own)
            .output();
        assert!(again.unwrap().stdout.is_empty());
    }
}

#[test]
fn a_lost_part_is_measured_by_the_run_that_writes_the_file() {
    let dir = tempdir().unwrap();
    let folder = |name: &str| dir.path().join(name);
    let (whole, _) = made(&folder("whole"), "whole.gguf");
    let shared = folder("shared");
    measure(&shared, "1/3");
    let part = measure(&shared, "3/3");
    says(&part.display().to_string(), &["-3-of-3.json"]);
    let (file, said) = made(&shared, "parts.gguf");
    assert!(file == whole);
    says(&said, &["part 2/3", "measured here"]);
}

#[test]
fn what_is_no_part_is_refused() {
    let dir = tempdir().unwrap();
    let shared = dir.path().join("shared");
    for wrong in ["0/2", "3/2", "2", "x/y"] {
        let output = compress(&shared).args(["--part", wrong]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
    let mut plain = dwindle(["compress", "--preset", "q4_k_m", "--part", "1/2"]);
    let sentence = refusal(plain.arg(checkpoint()).current_dir(dir.path()), 3);
    says(&sentence, &["nothing to measure", "--size"]);
    let mut nowhere = dwindle(["join"]);
    nowhere.arg(dir.path().join("nowhere")).arg("--workspace");
    says(&refusal(nowhere.arg(&shared), 3), &["no workspace"]);
}

#[test]
fn two_measurements_of_one_part_are_not_mixed() {
    let dir = tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    let part = measure(&one, "1/2");
    let other = measure(&two, "1/2");
    std::fs::write(&other, "{}").unwrap();
    let mut join = dwindle(["join"]);
    let sentence = refusal(join.arg(&one).arg("--workspace").arg(&two), 3);
    says(
        &sentence,
        &["are not the same", &part.display().to_string()],
    );
    assert_eq!(std::fs::read(&other).unwrap(), b"{}");
    // Nor is what can't be read taken for a part.
    let mut command = compress(&two);
    let file = dir.path().join("file.gguf");
    says(&refusal(command.arg("-o").arg(&file), 3), &["no survey"]);
    assert!(!listing(dir.path()).contains(&"file.gguf".to_string()));
}

/// What stands in for Slurm's: it runs each task of a job at once, but for the second of an array, which is
/// lost.
const SBATCH: &str = r#"#!/bin/sh
tasks=1
for word; do case "$word" in --array=1-*) tasks=${word#--array=1-};; esac; done
job=$(mktemp) && cat > "$job"
for task in $(seq "$tasks"); do
  [ "$task" = 2 ] || SLURM_ARRAY_TASK_ID=$task sh "$job" >> "$0.log" 2>&1
done
echo "7;cluster"
"#;

#[test]
fn the_script_for_slurm_makes_the_file() {
    let dir = tempdir().unwrap();
    let (whole, _) = made(&dir.path().join("whole"), "whole.gguf");
    let sbatch = dir.path().join("sbatch");
    std::fs::write(&sbatch, SBATCH).unwrap();
    std::fs::set_permissions(&sbatch, std::fs::Permissions::from_mode(0o755)).unwrap();
    // A name that a shell would take apart.
    let file = dir.path().join("a file's.gguf");
    let mut submit = dwindle(["submit", "--parts", "3", "--program", DWINDLE, "--"]);
    submit.args(compress(&dir.path().join("shared")).get_args().skip(1));
    let script = stdout(submit.arg("-o").arg(&file));
    let path = std::env::var("PATH").unwrap();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]);
    shell.env("PATH", format!("{}:{path}", dir.path().display()));
    let said = shell.output().unwrap();
    let log = std::fs::read_to_string(dir.path().join("sbatch.log")).unwrap();
    assert!(said.status.success(), "{log}");
    says(
        &String::from_utf8_lossy(&said.stdout),
        &["measuring: job 7"],
    );
    assert!(std::fs::read(&file).unwrap() == whole);
    says(&log, &["part 2/3", "measured here"]);

    let mut nowhere = dwindle(["submit", "--parts", "2", "--", "model", "-o", "x.gguf"]);
    says(&refusal(&mut nowhere, 2), &["--workspace"]);
    let mut nothing = dwindle(["submit", "--parts", "2", "--", "model", "--workspace", "w"]);
    says(&refusal(&mut nothing, 2), &["-o FILE"]);
}
