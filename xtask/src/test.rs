//! Everything that CI runs, and the part of it that is quick.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::{cargo, has_subcommand, root, run, run_patiently};

/// What `--quick` leaves out of a binary of `tests/`, and what that does with its time.
///
/// The second column is a module's name, or a module and a test, or nothing for the whole binary.
const SLOW: &[(&str, &str, &str)] = &[
    (
        "calibrate",
        "diagnosis",
        "runs models with one tensor replaced after the other",
    ),
    (
        "compress",
        "heads_and_experts",
        "makes models of every family smaller",
    ),
    (
        "compress",
        "interruption::fifty_kills_damage_nothing_and_the_next_run_gives_the_same_bytes",
        "kills and resumes fifty runs",
    ),
    (
        "compress",
        "targets",
        "measures sensitivities and makes files of a size",
    ),
    ("documents", "readme", "runs all that the documents show"),
    ("refuse", "damage", "changes every part of many files"),
    ("reload", "", "loads files again and again"),
    (
        "run",
        "executed_factors::every_form_gives_what_its_product_gives",
        "runs every form of factors on every kind of model",
    ),
    (
        "run",
        "executed_factors::however_the_context_is_made",
        "runs factors in every context",
    ),
    (
        "run",
        "factor_forms::experts_are_calibrated_factored_and_run",
        "calibrates experts",
    ),
];

/// All of it. What is tested is built once, by the tests themselves: a build without them has other features.
pub fn main() -> Result<(), String> {
    eprintln!("the first time, this compiles llama.cpp: some 6 minutes on 2 cores");
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
        &mut testing(&["test", "--release", "--locked", "--workspace"]),
        "tests",
    )?;
    // With what they print: how far a device's results are from the CPU's.
    let devices = [
        "test",
        "--release",
        "--locked",
        "--workspace",
        "--test",
        "devices",
    ];
    run(testing(&devices).args(["--", "--nocapture"]))
}

/// Cargo for tests. Several programs run at once, and a thread that spins would keep those of others from work.
fn testing(args: &[&str]) -> Command {
    let mut command = cargo(args);
    command.env("OMP_WAIT_POLICY", "passive");
    command
}

/// What takes less than two minutes once everything is built.
pub fn quick() -> Result<(), String> {
    let tests = quick_tests()?;
    format_and_lint()?;
    // Of the whole workspace each time, or the dependencies' features are others and all is built anew.
    let test = ["test", "--release", "--locked", "--workspace"];
    // Not `--bins`: those of the fuzz targets run for ever.
    run(testing(&test).arg("--lib"))?;
    let named = tests.iter().flat_map(|name| ["--test", name.as_str()]);
    let skipped = skips().flat_map(|name| ["--skip".to_string(), name]);
    run_patiently(testing(&test).args(named).arg("--").args(skipped), "tests")?;
    eprintln!("left out: documentation, dependencies, fuzz targets, benches, and these tests:");
    for (binary, part, why) in SLOW {
        eprintln!("  {}: {why}", path_of(binary, part));
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

/// A part of a binary as its tests are called.
fn path_of(binary: &str, part: &str) -> String {
    if part.is_empty() {
        binary.to_string()
    } else {
        format!("{binary}::{part}")
    }
}

/// What `--skip` is given: the test harness leaves out each test whose name contains it.
fn skips() -> impl Iterator<Item = String> {
    let parts = SLOW.iter().filter(|(_, part, _)| !part.is_empty());
    parts.map(|(_, part, _)| {
        if part.contains("::") {
            (*part).to_string()
        } else {
            format!("{part}::")
        }
    })
}

/// The binaries of `tests/` without those that are slow as a whole, and those of the formats.
fn quick_tests() -> Result<BTreeSet<String>, String> {
    let mut names = binaries()?;
    for (binary, part, _) in SLOW {
        if !is_there(binary, part) {
            return Err(format!(
                "`{}` is listed as a slow test, but tests/{binary} has no such part; \
                 correct the list in xtask/src/test.rs",
                path_of(binary, part)
            ));
        }
        if part.is_empty() {
            names.remove(*binary);
        }
    }
    names.extend(tests_of_the_formats()?);
    Ok(names)
}

/// Every folder of `tests/` that is a binary.
fn binaries() -> Result<BTreeSet<String>, String> {
    let folders = paths(&root().join("tests"))?.into_iter();
    Ok(folders
        .filter(|path| path.join("main.rs").is_file())
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_string()))
        .collect())
}

fn tests_of_the_formats() -> Result<BTreeSet<String>, String> {
    let files = paths(&root().join("formats").join("tests"))?.into_iter();
    Ok(files
        .filter_map(|path| Some(path.file_name()?.to_str()?.strip_suffix(".rs")?.to_string()))
        .collect())
}

fn paths(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn is_there(binary: &str, part: &str) -> bool {
    let (module, test) = part.split_once("::").unwrap_or((part, ""));
    let module = if module.is_empty() { "main" } else { module };
    let file = root()
        .join("tests")
        .join(binary)
        .join(format!("{module}.rs"));
    std::fs::read_to_string(file)
        .is_ok_and(|text| test.is_empty() || text.contains(&format!("fn {test}()")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_there() {
        let quick = quick_tests().unwrap();
        assert!(quick.contains("compress") && !quick.contains("reload"));
    }

    #[test]
    fn nothing_else_is_skipped_with_it() {
        for binary in binaries().unwrap() {
            let folder = root().join("tests").join(&binary);
            for entry in std::fs::read_dir(folder).unwrap() {
                let file = entry.unwrap().file_name().into_string().unwrap();
                let module = file.strip_suffix(".rs").unwrap();
                let mut slow = SLOW.iter().map(|(binary, part, _)| (*binary, *part));
                let listed = slow.any(|part| part == (binary.as_str(), module));
                let skipped = skips().any(|skip| format!("{module}::").contains(&skip));
                assert_eq!(listed, skipped, "{binary}::{module}");
            }
        }
    }
}
