//! A model that tables are made of, with what was measured of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::shell::{json, output, root};

const CHUNKS: &str = "20";
const CALIBRATION_CHUNKS: &str = "64";

/// The model, and the texts to calibrate and to measure on.
pub struct Subject {
    model: PathBuf,
    /// The text that is calibrated and fitted on.
    pub calibration: PathBuf,
    text: PathBuf,
    folder: PathBuf,
}

impl Subject {
    /// The model and the texts that the arguments name, the fixture where there are none,
    /// calibrated and diagnosed.
    pub fn prepare(args: &[&str]) -> Result<Subject, String> {
        let [model, calibration, text] = match args {
            [] => [
                "fixtures/kjv-llama",
                "fixtures/kjv-calibration.txt",
                "fixtures/kjv-heldout.txt",
            ],
            [model, calibration, text] => [*model, *calibration, *text],
            _ => {
                return Err("give a model, a text to calibrate on and a text to measure on".into());
            }
        };
        let here = std::env::current_dir().map_err(|e| e.to_string())?;
        let folder = root().join("target/methods");
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let subject = Subject {
            model: here.join(model),
            calibration: here.join(calibration),
            text: here.join(text),
            folder,
        };
        output(
            subject
                .dwindle("calibrate")
                .args(["--chunks", CALIBRATION_CHUNKS, "--text"])
                .arg(&subject.calibration)
                .arg("-o")
                .arg(subject.file("stats.safetensors")),
        )?;
        output(
            subject
                .dwindle("diagnose")
                .args(["--keep", "0.8", "--stats"])
                .arg(subject.file("stats.safetensors"))
                .arg("--text")
                .arg(&subject.calibration)
                .arg("-o")
                .arg(subject.file("diagnosis.json")),
        )?;
        Ok(subject)
    }

    /// A file beside the others.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command on the model.
    fn dwindle(&self, command: &str) -> Command {
        let mut dwindle = program(command);
        dwindle.arg(&self.model);
        dwindle
    }

    /// Compresses by a recipe with all that was measured; the output is still to be named.
    pub fn compress(&self, recipe: &Path, sequential: bool) -> Command {
        let mut compress = self.dwindle("compress");
        compress.arg("--json").arg("--recipe").arg(recipe);
        compress.arg("--stats").arg(self.file("stats.safetensors"));
        compress.arg("--diagnosis").arg(self.file("diagnosis.json"));
        if sequential {
            compress
                .arg("--sequential")
                .arg("--text")
                .arg(&self.calibration);
            compress.args(["--chunks", CALIBRATION_CHUNKS]);
        }
        compress
    }

    /// What a file of the model lost.
    pub fn evaluate(&self, file: &Path) -> Result<Value, String> {
        let mut eval = program("eval");
        eval.arg(file).args(["--json", "--chunks", CHUNKS]);
        eval.arg("--text").arg(&self.text);
        eval.arg("--reference").arg(&self.model);
        json(eval.arg("--cache").arg(self.file("reference")))
    }
}

/// A command of the program.
pub fn program(command: &str) -> Command {
    let mut program = Command::new(root().join("target/release/dwindle"));
    program.arg(command);
    program
}
