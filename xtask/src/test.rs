//! Everything that CI runs, and the part of it that is quick.

use std::collections::BTreeSet;

use crate::shell::{cargo, has_subcommand, root, run, run_patiently};

/// Integration tests that `--quick` leaves out, and what they do with their time.
const SLOW: &[(&str, &str)] = &[
    ("budget", "measures sensitivities and makes files of a size"),
    ("damage", "changes every part of many files"),
    (
        "diagnosing",
        "runs models with one tensor replaced after the other",
    ),
    ("edges", "calibrates and compresses by every method"),
    ("executing", "runs every form of factors in every context"),
    ("factors", "makes and runs every form of factors"),
    ("interruption", "kills and resumes many runs"),
    ("readme", "runs all that the documents show"),
    ("reloading", "loads files again and again"),
    ("running", "generates text"),
    ("shorter", "makes models of every family smaller"),
    ("structured", "makes models of every family smaller"),
];

/// All of it.
pub fn main() -> Result<(), String> {
    format_and_lint()?;
    run(cargo(&[
        "doc",
        "--release",
        "--locked",
        "--workspace",
        "--no-deps",
        "--quiet",
    ])
    .env("RUSTDOCFLAGS", "-D warnings"))?;
    dependencies()?;
    run_patiently(
        &mut cargo(&["test", "--release", "--locked", "--workspace"]),
        "tests",
    )
}

/// What takes less than two minutes once everything is built.
pub fn quick() -> Result<(), String> {
    let tests = quick_tests()?;
    format_and_lint()?;
    let test = ["test", "--release", "--locked"];
    run(cargo(&test).args(["--workspace", "--lib", "--bins"]))?;
    let named = tests.iter().flat_map(|name| ["--test", name.as_str()]);
    run_patiently(cargo(&test).args(named), "tests")?;
    eprintln!("left out: documentation, dependencies, fuzz targets, benches, and these tests:");
    for (name, why) in SLOW {
        eprintln!("  {name}: {why}");
    }
    Ok(())
}

fn format_and_lint() -> Result<(), String> {
    run(&mut cargo(&["fmt", "--all", "--check"]))?;
    let clippy = [
        "clippy",
        "--release",
        "--locked",
        "--workspace",
        "--all-targets",
    ];
    run_patiently(
        cargo(&clippy).args(["--quiet", "--", "-D", "warnings"]),
        "clippy",
    )
}

/// Licences, sources and duplicates of everything that is linked, where cargo-deny is installed.
///
/// Advisories are CI's: their database is fetched from the network.
fn dependencies() -> Result<(), String> {
    if !has_subcommand("deny") {
        eprintln!("skipped: cargo-deny is not installed (`cargo install --locked cargo-deny`)");
        return Ok(());
    }
    run(&mut cargo(&[
        "deny",
        "--locked",
        "--workspace",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// The integration tests of `tests/` without the slow ones.
fn quick_tests() -> Result<Vec<String>, String> {
    let folder = root().join("tests");
    let entries = std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut names: BTreeSet<String> = entries
        .flatten()
        .filter_map(|e| Some(e.file_name().to_str()?.strip_suffix(".rs")?.to_string()))
        .collect();
    for (name, _) in SLOW {
        if !names.remove(*name) {
            return Err(format!(
                "`{name}` is listed as a slow test, but there is no tests/{name}.rs; \
                 correct the list in xtask/src/test.rs"
            ));
        }
    }
    Ok(names.into_iter().collect())
}
