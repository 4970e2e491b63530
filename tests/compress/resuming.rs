//! A killed run is gone on with only by one that would write the same bytes.
#![cfg(unix)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::SystemTime;

use tempfile::{TempDir, tempdir};

use super::mark;
use crate::common::program::{DWINDLE, checkpoint, listing, says, sentence};

const NAME: &str = "model.dwn";

/// Tensors that are finished before something happens to a run.
const FINISHED: usize = 8;

/// A checkpoint, a recipe and the place of a file.
struct Case {
    dir: TempDir,
    model: PathBuf,
}

impl Case {
    /// A copy of the fixture, which may be changed.
    fn new() -> Case {
        let dir = tempdir().unwrap();
        let model = dir.path().join("model");
        std::fs::create_dir(&model).unwrap();
        for entry in std::fs::read_dir(checkpoint()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
        }
        std::fs::create_dir(dir.path().join("out")).unwrap();
        Case { dir, model }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out").join(NAME)
    }

    /// A run on one thread, one chunk at a time.
    fn command(&self, recipe: &str) -> Command {
        let file = self.dir.path().join("recipe.toml");
        std::fs::write(&file, recipe).unwrap();
        let mut command = Command::new(DWINDLE);
        command.args(["compress", "--threads", "1", "--memory", "1K", "--json"]);
        command.arg(&self.model).arg("--recipe").arg(file);
        command.arg("-o").arg(self.out());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts runs until something has happened to one after its first tensors and before its end.
    fn interrupted(&self, recipe: &str, event: impl Fn(&mut Child)) -> Output {
        for _ in 0..mark::ATTEMPTS {
            let mut child = self.command(recipe).spawn().unwrap();
            mark::reached(&mut child, || mark::journaled(&self.out()) >= FINISHED);
            event(&mut child);
            let output = child.wait_with_output().unwrap();
            if !output.status.success() {
                return output;
            }
            std::fs::remove_file(self.out()).unwrap();
        }
        panic!("every run was done before anything could happen to it");
    }

    fn kill(&self, recipe: &str) {
        let _ = self.interrupted(recipe, |child| child.kill().unwrap());
        assert!(!self.out().exists());
    }

    /// Tensors that a run did not have to make, whether it was told of another's, and the file.
    fn finish(&self, recipe: &str) -> (u64, bool, Vec<u8>) {
        let output = self.command(recipe).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let resumed = report["resumed_tensors"].as_u64().unwrap();
        let told = said.contains("it was not used");
        assert_eq!(listing(self.out().parent().unwrap()), [NAME]);
        (resumed, told, std::fs::read(self.out()).unwrap())
    }
}

/// The shard that holds the first tensors.
fn first_shard(model: &Path) -> PathBuf {
    model.join("model-00001-of-00002.safetensors")
}

#[test]
fn the_same_run_goes_on() {
    let case = Case::new();
    case.kill("type = \"f16\"");
    let (resumed, told, _) = case.finish("type = \"f16\"");
    assert!(resumed >= FINISHED as u64 && !told);
}

#[test]
fn a_run_that_would_write_other_bytes_begins_anew() {
    let magnitude = |how: &str| {
        format!("type = \"f16\"\n[[rule]]\nroles = [\"attn_q\"]\nmethod = \"magnitude\"\n{how}\n")
    };
    let dropping = |block: usize| format!("type = \"f16\"\n[structure]\ndrop = [{block}]\n");
    for [killed, next] in [
        [magnitude("sparsity = 0.5"), magnitude("pattern = \"2:4\"")],
        [dropping(2), dropping(1)],
    ] {
        let clean = Case::new().finish(&next).2;
        let case = Case::new();
        case.kill(&killed);
        let (resumed, told, file) = case.finish(&next);
        assert!(file == clean, "a mixture of two plans: {next}");
        assert_eq!((resumed, told), (0, true), "{next}");
    }
}

#[test]
fn a_checkpoint_of_the_same_length_and_time_is_another_by_its_content() {
    let recipe = "type = \"f16\"";
    let case = Case::new();
    let shard = first_shard(&case.model);
    case.kill(recipe);
    let time = std::fs::metadata(&shard).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&shard).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[8 + header..]
        .iter_mut()
        .step_by(2)
        .for_each(|b| *b ^= 1);
    std::fs::write(&shard, &bytes).unwrap();
    let file = std::fs::File::options().write(true).open(&shard).unwrap();
    file.set_modified(time).unwrap();
    let (resumed, told, _) = case.finish(recipe);
    assert_eq!((resumed, told), (0, true));
}

#[test]
fn a_checkpoint_that_changes_under_way_is_refused() {
    let case = Case::new();
    let shard = first_shard(&case.model);
    let touch = |_: &mut Child| {
        let file = std::fs::File::options().write(true).open(&shard).unwrap();
        file.set_modified(SystemTime::now()).unwrap();
    };
    let output = case.interrupted("type = \"f16\"", touch);
    let said = sentence(&output, 3);
    says(
        &said,
        &[
            "model-00001-of-00002.safetensors",
            "changed while it was read",
        ],
    );
    assert!(listing(case.out().parent().unwrap()).is_empty());
}
