//! Compiles the C++ shim against the llama.cpp sources that `llama-cpp-sys-2` has just built.

use std::path::{Path, PathBuf};

/// The only version whose internal headers the shim knows; Cargo.toml pins the same.
const SYS_VERSION: &str = "0.1.161";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/llama/shim.cpp");
    match llama_sources() {
        Ok(sources) => compile(&sources),
        Err(problem) => {
            eprintln!("error: can't compile src/llama/shim.cpp: {problem}");
            std::process::exit(1);
        }
    }
}

/// Where the llama.cpp tree lies that the sys crate was built from: cmake's cache says it.
fn llama_sources() -> Result<PathBuf, String> {
    let root = std::env::var("DEP_LLAMA_ROOT")
        .map_err(|_| "llama-cpp-sys-2 did not say where it was built (DEP_LLAMA_ROOT)")?;
    let cache = Path::new(&root).join("build/CMakeCache.txt");
    let text = std::fs::read_to_string(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
    let sources = text
        .lines()
        .find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))
        .ok_or_else(|| format!("{} names no source directory", cache.display()))?;
    let sources = PathBuf::from(sources);
    let manifest = sources.with_file_name("Cargo.toml");
    let text =
        std::fs::read_to_string(&manifest).map_err(|e| format!("{}: {e}", manifest.display()))?;
    let version = format!("version = \"{SYS_VERSION}\"");
    if !text.lines().any(|line| line.trim() == version) {
        return Err(format!(
            "{} is not llama-cpp-sys-2 {SYS_VERSION}; the shim uses internal headers of that version only",
            manifest.display()
        ));
    }
    Ok(sources)
}

fn compile(sources: &Path) {
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(sources.join("src"))
        .include(sources.join("include"))
        .include(sources.join("ggml/include"))
        .file("src/llama/shim.cpp")
        .compile("dwindle_shim");
}
