//! What llama.cpp's build needs from the system: cmake, a C++ compiler and libclang.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::shell;

/// Debian's packages that bring what is missing.
const PACKAGES: [&str; 3] = ["cmake", "libclang-dev", "g++"];

/// Installs what is missing where that is allowed, and otherwise says what to type.
pub fn install_missing() -> Result<(), String> {
    match missing() {
        missing if missing.is_empty() => Ok(()),
        missing => install(&missing),
    }
}

/// Installs what is missing, then builds.
pub fn prepare() -> Result<(), String> {
    install_missing()?;
    eprintln!(
        "building dwindle; the first time this compiles llama.cpp, some 6 minutes on 2 cores"
    );
    shell::run_patiently(
        &mut shell::cargo(&["build", "--release", "--locked", "--workspace"]),
        "compiling",
    )
}

fn missing() -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !runs("cmake") {
        missing.push("cmake");
    }
    if !has_libclang() {
        missing.push("libclang");
    }
    if !runs("c++") {
        missing.push("a C++ compiler");
    }
    missing
}

fn runs(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Looks where bindgen looks: LIBCLANG_PATH, llvm's folders and the system's.
fn has_libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let mut folders = vec![
        "/usr/lib".to_string(),
        "/usr/lib64".into(),
        "/usr/local/lib".into(),
        format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH),
        "/Library/Developer/CommandLineTools/usr/lib".into(),
    ];
    if let Ok(entries) = std::fs::read_dir("/usr/lib") {
        folders.extend(
            entries
                .flatten()
                .map(|e| e.path())
                .filter(|p| p.to_string_lossy().contains("llvm"))
                .map(|p| p.join("lib").to_string_lossy().into_owned()),
        );
    }
    folders.iter().any(|folder| {
        std::fs::read_dir(Path::new(folder)).is_ok_and(|entries| {
            entries
                .flatten()
                .any(|e| e.file_name().to_string_lossy().starts_with("libclang"))
        })
    })
}

fn install(missing: &[&str]) -> Result<(), String> {
    let by_hand = format!(
        "{} not found; install them, on Debian with: sudo apt-get install {}",
        missing.join(" and "),
        PACKAGES.join(" ")
    );
    let is_root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|o| o.stdout.trim_ascii() == b"0");
    if !is_root || !runs("apt-get") {
        return Err(by_hand);
    }
    eprintln!(
        "{} not found, installing with apt-get",
        missing.join(" and ")
    );
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(PACKAGES);
    let quiet = |args: &[&str]| {
        shell::run(
            Command::new("apt-get")
                .arg("-qq")
                .args(args)
                .env("DEBIAN_FRONTEND", "noninteractive")
                .stdout(Stdio::null()),
        )
    };
    quiet(&["update"])
        .and_then(|()| quiet(&install))
        .map_err(|e| format!("{e}; {by_hand}"))
}
