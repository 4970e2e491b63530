//! Each target runs through its seeds.

use std::path::Path;
use std::process::Command;

#[track_caller]
fn runs_its_seeds(target: &str, corpus: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(corpus);
    let seeds = std::fs::read_dir(folder).unwrap();
    let seeds: Vec<_> = seeds.map(|entry| entry.unwrap().path()).collect();
    let output = Command::new(target).args(&seeds).output().unwrap();
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");
    let executed = report.matches("Executed ").count();
    assert_eq!(executed, seeds.len(), "{report}");
}

#[test]
fn the_gguf_target_runs_its_seeds() {
    runs_its_seeds(env!("CARGO_BIN_EXE_fuzz-gguf"), "gguf");
}

#[test]
fn the_container_target_runs_its_seeds() {
    runs_its_seeds(env!("CARGO_BIN_EXE_fuzz-container"), "container");
}

#[test]
fn the_recipe_target_runs_its_seeds() {
    runs_its_seeds(env!("CARGO_BIN_EXE_fuzz-recipe"), "recipe");
}

#[test]
fn the_pickle_target_runs_its_seeds() {
    runs_its_seeds(env!("CARGO_BIN_EXE_fuzz-pickle"), "pickle");
}

#[test]
fn the_state_target_runs_its_seeds() {
    runs_its_seeds(env!("CARGO_BIN_EXE_fuzz-state"), "state");
}

#[test]
fn the_packed_target_runs_its_seeds() {
    runs_its_seeds(env!("CARGO_BIN_EXE_fuzz-packed"), "packed");
}
