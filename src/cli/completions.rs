//! `dwindle completions`: prints completion scripts for shells.

use std::io::Write;

use clap::Parser;
use clap_complete::Shell;

use super::Failure;

/// Print the completion script of a shell
///
/// For bash: `dwindle completions bash > ~/.local/share/bash-completion/completions/dwindle`. For
/// zsh: write it as `_dwindle` into a folder of `$fpath`. For fish:
/// `dwindle completions fish > ~/.config/fish/completions/dwindle.fish`.
#[derive(Debug, Parser)]
pub struct Args {
    /// The shell
    shell: Shell,
}

/// Runs `dwindle completions` for this command tree.
pub fn main(args: &Args, mut tree: clap::Command) -> Result<(), Failure> {
    // clap_complete panics where it can't write, so it writes to memory.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut tree, "dwindle", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
