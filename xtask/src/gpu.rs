//! Builds for GPUs, and holds what models give there against the CPU.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{cargo, root, run, run_patiently};

/// Builds with a feature of llama.cpp's, says what is linked, and runs all commands on its first device
/// where there is one.
pub fn main(args: &[&str]) -> Result<(), String> {
    let (feature, device) = match args {
        ["vulkan"] => ("vulkan", "Vulkan0"),
        ["cuda"] => ("cuda", "CUDA0"),
        _ => return Err("`gpu` takes `vulkan` or `cuda`".into()),
    };
    let folder = root().join("target").join(feature);
    let with = [
        "--release",
        "--locked",
        "--features",
        feature,
        "--target-dir",
    ];
    run_patiently(
        cargo(&["build"]).args(with).arg(&folder),
        "compiling llama.cpp for GPUs",
    )?;
    let program = folder.join("release/dwindle");
    linked(&program)?;
    let seen = devices(&program)?;
    println!("llama.cpp sees {seen}");
    if !seen.split(", ").any(|name| name == device) {
        println!("compiled and linked; there is no {device} here, so that nothing was run on it");
        return Ok(());
    }
    let on_it = [
        "--test",
        "devices",
        "--",
        "--nocapture",
        "--test-threads",
        "1",
    ];
    let on_it = on_it.map(PathBuf::from);
    run(cargo(&["test"])
        .args(with)
        .arg(&folder)
        .args(on_it)
        .env("DWINDLE_DEVICE", device))
}

/// Prints the libraries that the program needs.
fn linked(program: &Path) -> Result<(), String> {
    run(Command::new("ldd").arg(program))
}

/// The names of the devices that a build sees, as it says where one is not there.
fn devices(program: &Path) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(["run", "fixtures/kjv-llama", "-p", "And", "--device", "any"]);
    let output = command.current_dir(root()).output();
    let output = output.map_err(|e| format!("the program does not start: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let seen = text
        .split_once("llama.cpp sees ")
        .map(|(_, seen)| seen.trim());
    seen.map(str::to_string).ok_or(text)
}
