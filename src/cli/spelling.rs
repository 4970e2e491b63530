//! Options as llama.cpp's users spell them, rewritten into what clap can parse.

use std::ffi::OsString;

use clap::Command;

/// The arguments with `--n-gpu-layers` for `-ngl`: clap's short options have one letter.
///
/// Rewrites only where an option can stand: not the value of another option, and nothing after `--`.
pub fn with_long_names(args: impl IntoIterator<Item = OsString>, tree: &Command) -> Vec<OsString> {
    let _ = tree;
    let rewritten = |arg: OsString| match arg.to_str() {
        Some("-ngl") => "--n-gpu-layers".into(),
        _ => arg,
    };
    args.into_iter().map(rewritten).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn only_an_option_is_rewritten() {
        for (given, expected) in [
            (
                "dwindle run m -ngl 9 -p a",
                "dwindle run m --n-gpu-layers 9 -p a",
            ),
            (
                "dwindle run m -p a -ngl 9",
                "dwindle run m -p a --n-gpu-layers 9",
            ),
            (
                "dwindle run m -n 4 -ngl 9",
                "dwindle run m -n 4 --n-gpu-layers 9",
            ),
            (
                "dwindle run m -p -ngl -ngl 9",
                "dwindle run m -p -ngl --n-gpu-layers 9",
            ),
            ("dwindle run m --prompt -ngl", "dwindle run m --prompt -ngl"),
            ("dwindle run m --prompt=-ngl", "dwindle run m --prompt=-ngl"),
            (
                "dwindle run m -pa -ngl 9",
                "dwindle run m -pa --n-gpu-layers 9",
            ),
            ("dwindle run -p a -- -ngl", "dwindle run -p a -- -ngl"),
            (
                "dwindle run -p -- -ngl 9",
                "dwindle run -p -- --n-gpu-layers 9",
            ),
        ] {
            let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
            let found = with_long_names(words(given), &crate::cli::Cli::command());
            assert_eq!(found, words(expected), "{given}");
        }
    }

    #[test]
    fn a_prompt_may_begin_with_a_hyphen() {
        use clap::Parser;
        for prompt in ["-ngl", "- milk", "--"] {
            let args = ["dwindle", "run", "m", "-p", prompt].map(OsString::from);
            let args = with_long_names(args, &crate::cli::Cli::command());
            let parsed = crate::cli::Cli::try_parse_from(args);
            assert!(parsed.is_ok(), "{prompt}: {parsed:?}");
        }
    }
}
