//! What is generated from the command line's own description: the reference, completions, manual
//! pages.

use std::path::Path;

use tempfile::tempdir;

use crate::common::program::{dwindle, listing, refusal, says, stdout};

#[test]
fn the_reference_is_that_of_the_program() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    let written = std::fs::read_to_string(file).unwrap();
    let page = stdout(&mut dwindle(["reference"]));
    let differs = page.lines().zip(written.lines()).find(|(a, b)| a != b);
    assert!(
        page == written,
        "docs/cli.md is not what the program says; run `cargo xtask docs` and commit the page\n\
         first difference (program, page): {differs:?}"
    );
}

#[test]
fn the_reference_has_commands_options_defaults_and_values() {
    let page = stdout(&mut dwindle(["reference"]));
    says(
        &page,
        &[
            "## `dwindle compress`",
            "- `-o`, `--output <",
            "(default: `normal`)\n  - `fast`: ",
            "- `--dry-run`: ",
        ],
    );
    assert!(!page.contains("## `dwindle reference`"), "it is hidden");
}

#[test]
fn completions_know_commands_and_options() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&mut dwindle(["completions", shell]));
        says(&script, &["dwindle", "compress", "max-kld"]);
    }
    let mut unknown = dwindle(["completions", "dosbox"]);
    assert_eq!(unknown.output().unwrap().status.code(), Some(2));
}

#[test]
fn each_command_has_a_manual_page() {
    let dir = tempdir().unwrap();
    let folder = dir.path().join("new/man1");
    stdout(dwindle(["man"]).arg(&folder));
    let pages = listing(&folder);
    for page in ["dwindle.1", "dwindle-compress.1", "dwindle-man.1"] {
        assert!(pages.iter().any(|p| p == page), "{page} in {pages:?}");
    }
    assert!(
        !pages.iter().any(|p| p.contains("reference")),
        "it is hidden"
    );
    let page = std::fs::read_to_string(folder.join("dwindle-compress.1")).unwrap();
    says(&page, &[".TH dwindle-compress 1", "max\\-kld"]);

    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    says(&refusal(dwindle(["man"]).arg(&file), 3), &["file"]);
}
