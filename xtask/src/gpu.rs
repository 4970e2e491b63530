//! Builds for GPUs, and holds what models give there against the CPU.

use std::path::Path;
use std::process::Command;

use crate::shell::{cargo, root, run, run_patiently};

/// Builds with a feature of llama.cpp's, says what is linked, and runs all commands on its first device
/// where there is one.
pub fn main(args: &[&str]) -> Result<(), String> {
    let (feature, device, more) = match args {
        ["vulkan", more @ ..] => ("vulkan", "Vulkan0", more),
        ["cuda", more @ ..] => ("cuda", "CUDA0", more),
        _ => return Err("`gpu` takes `vulkan` or `cuda`, and more features".into()),
    };
    let folder = root().join("target").join(feature);
    let features = [&[feature], more].concat().join(",");
    let with = ["--release", "--locked", "--features", &features];
    let mut build = cargo(&["build"]);
    build.args(with).arg("--target-dir").arg(&folder);
    run_patiently(&mut build, "compiling llama.cpp for GPUs")?;
    let program = folder.join("release/dwindle");
    let libraries = libraries(&folder);
    run(Command::new("ldd").arg(&program).env(SEARCHED, &libraries))?;
    let seen = devices(&program, &libraries)?;
    println!("llama.cpp sees {seen}");
    if !seen.split(", ").any(|name| name == device) {
        println!("compiled and linked; there is no {device} here, so that nothing was run on it");
        return Ok(());
    }
    let mut test = cargo(&["test"]);
    test.args(with).arg("--target-dir").arg(&folder);
    test.args(["--test", "devices", "--", "sums::", "walks::"]);
    test.args(["--nocapture", "--test-threads", "1"]);
    run(test.env("DWINDLE_DEVICE", device).env(SEARCHED, &libraries))
}

/// Where the loader looks for libraries.
const SEARCHED: &str = "LD_LIBRARY_PATH";

/// llama.cpp's own libraries, for builds that link them dynamically, and what is searched anyway.
fn libraries(folder: &Path) -> String {
    let builds = std::fs::read_dir(folder.join("release/build"));
    let builds = builds.into_iter().flatten().flatten();
    let own = builds.map(|entry| entry.path().join("out/lib"));
    let own = own.filter(|lib| lib.is_dir());
    let own = own.map(|lib| lib.display().to_string());
    let all: Vec<String> = own.chain(std::env::var(SEARCHED).ok()).collect();
    all.join(":")
}

/// The names of the devices that a build sees, as it says where one is not there.
fn devices(program: &Path, libraries: &str) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(["run", "fixtures/kjv-llama", "-p", "And", "--device", "any"]);
    command.env(SEARCHED, libraries);
    let output = command.current_dir(root()).output();
    let output = output.map_err(|e| format!("the program does not start: {e}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let seen = text
        .split_once("llama.cpp sees ")
        .map(|(_, seen)| seen.trim());
    seen.map(str::to_string).ok_or(text)
}
