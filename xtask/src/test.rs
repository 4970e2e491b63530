//! Everything that CI runs.

use crate::shell::{cargo, run, run_patiently};

pub fn main() -> Result<(), String> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    run_patiently(
        &mut cargo(&[
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]),
        "clippy",
    )?;
    run(
        cargo(&["doc", "--release", "--workspace", "--no-deps", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    run_patiently(&mut cargo(&["test", "--release", "--workspace"]), "tests")
}
