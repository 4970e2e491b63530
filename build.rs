//! Compiles the C++ shim, and makes bindings of ggml's internal headers, from the llama.cpp sources
//! that `llama-cpp-sys-2` has just built: so their layouts are those of the library.

use std::path::{Path, PathBuf};

/// The only version whose internal headers the shim knows; Cargo.toml pins the same.
const SYS_VERSION: &str = "0.1.161";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for file in ["shim.cpp", "calls.cpp", "guard.cpp", "guard.h"] {
        println!("cargo:rerun-if-changed=src/llama/{file}");
    }
    println!("cargo:rerun-if-changed=src/llama/internals.h");
    let done = llama_sources().and_then(|sources| {
        compile(&sources);
        bind(&sources)
    });
    match done {
        Ok(()) => {}
        Err(problem) => {
            eprintln!("error: can't build against llama.cpp: {problem}");
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

/// Types of ggml's backend interface; those that llama-cpp-sys-2 has are taken from it.
fn bind(sources: &Path) -> Result<(), String> {
    let out = std::env::var("OUT_DIR").map_err(|e| e.to_string())?;
    let bindings = bindgen::Builder::default()
        .header("src/llama/internals.h")
        .clang_arg(format!("-I{}", sources.join("ggml/include").display()))
        .clang_arg(format!("-I{}", sources.join("ggml/src").display()))
        .allowlist_recursively(false)
        .allowlist_type("ggml_backend(_buffer|_buffer_type|_device|_reg)?(_i)?|ggml_backend_graph_optimize_params")
        .allowlist_type("ggml_cgraph|ggml_hash_set|ggml_bitset_t|ggml_cgraph_eval_order")
        .allowlist_var("GGML_BACKEND_API_VERSION|GGML_TENSOR_FLAG_COMPUTE")
        .raw_line("use llama_cpp_sys_2::*;")
        .prepend_enum_name(false)
        .derive_debug(false)
        .generate()
        .map_err(|e| e.to_string())?;
    bindings
        .write_to_file(Path::new(&out).join("internals.rs"))
        .map_err(|e| e.to_string())
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
        .file("src/llama/calls.cpp")
        .file("src/llama/guard.cpp")
        .compile("dwindle_shim");
}
