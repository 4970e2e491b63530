//! A build for the processor at hand.

use crate::shell::{cargo, run_patiently};

/// Where it goes, so that the portable build stays as it is.
const FOLDER: &str = "target/native";

pub fn main() -> Result<(), String> {
    eprintln!(
        "building for this processor only, llama.cpp included: the program may not run elsewhere"
    );
    run_patiently(
        cargo(&["build", "--release", "--locked", "--target-dir", FOLDER])
            .env("RUSTFLAGS", "-C target-cpu=native"),
        "compiling",
    )?;
    eprintln!("built {FOLDER}/release/dwindle");
    Ok(())
}
