//! Thousands of files that are wrong in ways that no checksum shows, run and evaluated.

use crate::shell::{cargo, run_patiently};

/// Mutants of each file's metadata, of its structure, and the seed.
const DEFAULT: [&str; 3] = ["2000", "1000", "7"];

pub fn main(args: &[&str]) -> Result<(), String> {
    let numbers = match args {
        [] => DEFAULT,
        [metadata, structure, seed] => [*metadata, *structure, *seed],
        _ => return Err("`hostile` takes three numbers or none".into()),
    };
    if let Some(odd) = numbers.iter().find(|n| n.parse::<u32>().is_err()) {
        return Err(format!("`{odd}` is not a number"));
    }
    let test = ["test", "--release", "--test", "refuse"];
    let all = ["hostile_models::", "--", "--ignored", "--nocapture"];
    run_patiently(
        cargo(&test)
            .args(all)
            .env("DWINDLE_HOSTILE", numbers.join(" ")),
        "hostile models",
    )
}
