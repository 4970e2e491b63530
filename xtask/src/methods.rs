//! Every method on one model: what each costs at the same kept parameters.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{json, number, output, root};

const CHUNKS: &str = "20";
const CALIBRATION_CHUNKS: &str = "64";

const ALL: &str =
    r#"["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]"#;
const QKV: &str = r#"["attn_q", "attn_k", "attn_v"]"#;
const K: &str = r#"["attn_k"]"#;

/// Roles, what a rule says beside them, and whether layers are fitted one after the other.
const ROWS: &[(&str, &str, bool)] = &[
    (ALL, "method = 'svd', keep = 0.9", false),
    (ALL, "method = 'svd', keep = 0.8", false),
    (ALL, "method = 'svd', keep = 0.6", false),
    (ALL, "method = 'svd', joint = true, keep = 0.9", false),
    (ALL, "method = 'svd', joint = true, keep = 0.8", false),
    (
        ALL,
        "method = 'svd', joint = true, rank = 'auto', keep = 0.9",
        false,
    ),
    (
        ALL,
        "method = 'svd', joint = true, rank = 'auto', keep = 0.8",
        false,
    ),
    (
        ALL,
        "method = 'svd', joint = true, rank = 'auto', keep = 0.9",
        true,
    ),
    (
        ALL,
        "method = 'svd', joint = true, rank = 'auto', keep = 0.8",
        true,
    ),
    (ALL, "method = 'wanda', sparsity = 0.3", false),
    (ALL, "method = 'wanda', sparsity = 0.5", false),
    (ALL, "method = 'magnitude', sparsity = 0.5", false),
    (ALL, "method = 'sparsegpt', sparsity = 0.5", false),
    (ALL, "method = 'sparsegpt', sparsity = 0.5", true),
    (
        ALL,
        "method = 'sparse-low-rank', sparsity = 0.5, keep = 0.6",
        false,
    ),
    (QKV, "method = 'svd', keep = 0.8", false),
    (QKV, "method = 'svd', joint = true, keep = 0.8", false),
    (QKV, "method = 'tucker', over = 'heads', keep = 0.8", false),
    (
        QKV,
        "method = 'tensor-train', over = 'heads', keep = 0.8",
        false,
    ),
    (K, "method = 'svd', keep = 0.5", false),
    (K, "method = 'svd', keep = 0.8", false),
    (K, "method = 'tucker', over = 'heads', keep = 0.8", false),
    (
        K,
        "method = 'tensor-train', over = 'heads', keep = 0.8",
        false,
    ),
    (K, "method = 'cp', over = 'heads', keep = 0.8", false),
    (
        K,
        "method = 'tucker', over = 'layers', stack = 5, keep = 0.8",
        false,
    ),
    (
        K,
        "method = 'tensor-train', over = 'layers', stack = 5, keep = 0.8",
        false,
    ),
    (K, "method = 'tensor-train', modes = 2, keep = 0.8", false),
];

/// The model, and the texts to calibrate and to measure on.
struct Subject {
    model: PathBuf,
    calibration: PathBuf,
    text: PathBuf,
    folder: PathBuf,
}

pub fn main(args: &[&str]) -> Result<(), String> {
    let [model, calibration, text] = match args {
        [] => [
            "fixtures/kjv-llama",
            "fixtures/kjv-calibration.txt",
            "fixtures/kjv-heldout.txt",
        ],
        [model, calibration, text] => [*model, *calibration, *text],
        _ => return Err("give a model, a text to calibrate on and a text to measure on".into()),
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
    println!("| roles | rule | bytes | perplexity | mean KLD |\n|---|---|---|---|---|");
    for (roles, rule, sequential) in ROWS {
        subject.row(roles, rule, *sequential)?;
    }
    Ok(())
}

impl Subject {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command on the model.
    fn dwindle(&self, command: &str) -> Command {
        let mut dwindle = Command::new(root().join("target/release/dwindle"));
        dwindle.arg(command).arg(&self.model);
        dwindle
    }

    /// Compresses by one rule over f16, measures, prints.
    fn row(&self, roles: &str, rule: &str, sequential: bool) -> Result<(), String> {
        let recipe = self.file("recipe.toml");
        let lines = rule.replace(", ", "\n");
        let prunes = ["wanda", "magnitude", "sparsegpt"]
            .iter()
            .any(|m| rule.contains(&format!("'{m}'")));
        let ty = if prunes { "" } else { "type = \"f16\"\n" };
        let text = format!("type = \"f16\"\n[[rule]]\nroles = {roles}\n{ty}{lines}\n");
        std::fs::write(&recipe, text).map_err(|e| e.to_string())?;
        let file = self.file("model.dwn");
        let mut compress = self.dwindle("compress");
        compress.arg("--json").arg("--recipe").arg(&recipe);
        compress.arg("--stats").arg(self.file("stats.safetensors"));
        compress.arg("--diagnosis").arg(self.file("diagnosis.json"));
        if sequential {
            compress
                .arg("--sequential")
                .arg("--text")
                .arg(&self.calibration);
            compress.args(["--chunks", CALIBRATION_CHUNKS]);
        }
        let compressed = json(compress.arg("-o").arg(&file))?;
        let evaluated = self.evaluate(&file)?;
        let roles = match roles {
            ALL => "all",
            QKV => "`attn_q`, `attn_k`, `attn_v`",
            _ => "`attn_k`",
        };
        println!(
            "| {roles} | `{}`{} | {} | {:.2} | {:.3} |",
            rule.replace('\'', "\"").replace(", ", "`, `"),
            if sequential { ", `--sequential`" } else { "" },
            number(&compressed, "/bytes")? as u64,
            number(&evaluated, "/perplexity/perplexity/value")?,
            number(&evaluated, "/divergence/kld/value")?,
        );
        Ok(())
    }

    fn evaluate(&self, file: &Path) -> Result<serde_json::Value, String> {
        let mut eval = Command::new(root().join("target/release/dwindle"));
        eval.arg("eval")
            .arg(file)
            .args(["--json", "--chunks", CHUNKS]);
        eval.arg("--text").arg(&self.text);
        eval.arg("--reference").arg(&self.model);
        json(eval.arg("--cache").arg(self.file("reference")))
    }
}
