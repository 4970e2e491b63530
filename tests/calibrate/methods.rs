//! Calibration and the methods that need it, on the fixture, as a user runs them.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::tempdir;

use crate::common::program::{checkpoint, dwindle, fixture, refusal, says, stdout};

/// Statistics of the fixture over a little of its training text.
fn statistics(folder: &Path) -> PathBuf {
    let file = folder.join("stats.safetensors");
    let mut command = dwindle(["calibrate", "--threads", "1", "--chunks", "6", "--text"]);
    command.arg(fixture("kjv-calibration.txt"));
    command.arg(checkpoint()).arg("--output").arg(&file);
    stdout(&mut command);
    file
}

/// Compresses every linear layer by one rule and gives the mean KL divergence.
fn divergence(folder: &Path, rule: &str, stats: Option<&Path>) -> f64 {
    let recipe = folder.join("recipe.toml");
    let text = format!("type = \"source\"\n[[rule]]\nname = \"blk.*.weight\"\n{rule}\n");
    std::fs::write(&recipe, text).unwrap();
    let file = folder.join("x.dwn");
    let mut command = dwindle(["compress"]);
    command.arg(checkpoint()).arg("--output").arg(&file);
    command.arg("--recipe").arg(&recipe);
    if let Some(stats) = stats {
        command.arg("--stats").arg(stats);
    }
    stdout(&mut command);
    let mut command = dwindle([
        "eval",
        "--threads",
        "1",
        "--json",
        "--chunks",
        "4",
        "--text",
    ]);
    command.arg(fixture("kjv-heldout.txt")).arg(&file);
    command.arg("--reference").arg(checkpoint());
    let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
    report["divergence"]["kld"]["value"].as_f64().unwrap()
}

#[test]
fn what_is_fitted_to_the_inputs_loses_less() {
    let folder = tempdir().unwrap();
    let stats = statistics(folder.path());
    let loss = |rule: &str, stats: Option<&Path>| divergence(folder.path(), rule, stats);

    let svd = "method = \"svd\"\nkeep = 0.5";
    let (plain, whitened) = (loss(svd, None), loss(svd, Some(&stats)));
    assert!(whitened < 0.8 * plain, "{whitened} {plain}");

    let prune = |name: &str| {
        loss(
            &format!("method = \"{name}\"\nsparsity = 0.6"),
            Some(&stats),
        )
    };
    let (magnitude, wanda, sparsegpt) = (prune("magnitude"), prune("wanda"), prune("sparsegpt"));
    assert!(wanda < magnitude, "{wanda} {magnitude}");
    assert!(sparsegpt < wanda, "{sparsegpt} {wanda}");
}

#[test]
fn a_method_without_the_statistics_that_it_needs_is_refused() {
    let folder = tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    let text = "type = \"source\"\n[[rule]]\nmethod = \"wanda\"\npattern = \"2:4\"\n";
    std::fs::write(&recipe, text).unwrap();
    let mut command = dwindle(["compress", "--dry-run"]);
    command.arg(checkpoint()).arg("--recipe").arg(&recipe);
    says(
        &refusal(&mut command, 3),
        &[
            "`wanda`",
            "token_embd.weight",
            "--stats",
            "dwindle calibrate",
        ],
    );
}
