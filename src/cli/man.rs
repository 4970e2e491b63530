//! `dwindle man`: one manual page a command.

use std::path::PathBuf;

use clap::Parser;
use fs_err as fs;

use super::Failure;

/// Write the manual pages, one for each command, into a folder
///
/// Read one with `man DIR/dwindle-compress.1`, or install them all in a folder `man1` of the
/// manual's path, such as `~/.local/share/man/man1`.
#[derive(Debug, Parser)]
pub struct Args {
    /// The folder; it is created if it is missing, and older pages in it are replaced
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Runs `dwindle man` for this command tree.
pub fn main(args: &Args, tree: clap::Command) -> Result<(), Failure> {
    fs::create_dir_all(&args.folder)?;
    clap_mangen::generate_to(tree, &args.folder).map_err(|e| Failure::file(&args.folder, e))
}
