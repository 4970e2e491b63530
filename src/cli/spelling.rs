//! Options as llama.cpp's users spell them, rewritten into what clap can parse.

use std::ffi::{OsStr, OsString};

use clap::{Arg, Command};

/// llama.cpp's options of one hyphen and several letters, and clap's names for them.
const LONG: [(&str, &str); 5] = [
    ("-ngl", "--n-gpu-layers"),
    ("-dev", "--device"),
    ("-sm", "--split-mode"),
    ("-mg", "--main-gpu"),
    ("-ts", "--tensor-split"),
];

/// The arguments with `--n-gpu-layers` for `-ngl` and so on: clap's short options have one letter.
///
/// Rewrites only where an option can stand: not the value of another option, and nothing after
/// `--`.
pub fn with_long_names(args: impl IntoIterator<Item = OsString>, tree: &Command) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    let mut command = tree;
    let mut is_value = false;
    for arg in args.by_ref() {
        if !is_value && arg == "--" {
            out.push(arg);
            break;
        }
        let long = LONG.iter().find(|(short, _)| arg == *short);
        if let Some((_, long)) = long.filter(|_| !is_value) {
            out.push(long.into());
            continue;
        }
        is_value = !is_value && expects_any_value(command, &arg);
        command = command.find_subcommand(&arg).unwrap_or(command);
        out.push(arg);
    }
    out.extend(args);
    out
}

/// Whether clap takes whatever follows this argument as its value, even if it begins with a hyphen.
fn expects_any_value(command: &Command, arg: &OsStr) -> bool {
    let takes_any = |a: &Arg| a.get_action().takes_values() && a.is_allow_hyphen_values_set();
    let Some(text) = arg.to_str() else {
        return false;
    };
    if let Some(long) = text.strip_prefix("--") {
        return command
            .get_opts()
            .any(|a| takes_any(a) && (a.get_long() == Some(long)));
    }
    let Some(letters) = text.strip_prefix('-') else {
        return false;
    };
    // `-ab` is `-a -b`, or `-a` with the value `b`: only a last letter's value can follow.
    let mut letters = letters.chars();
    while let Some(letter) = letters.next() {
        let known = command
            .get_arguments()
            .find(|a| a.get_short() == Some(letter));
        match known {
            Some(a) if a.get_action().takes_values() => {
                return letters.as_str().is_empty() && takes_any(a);
            }
            Some(_) => {}
            None => return false,
        }
    }
    false
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
