//! `dwindle man`: writes one manual page per command.

use std::path::PathBuf;

use clap::Parser;
use fs_err as fs;

use super::Failure;

/// Write one manual page per command into a folder
///
/// Read one with `man DIR/dwindle-compress.1`, or install all of them in a `man1` folder of the
/// manual path, such as `~/.local/share/man/man1`.
#[derive(Debug, Parser)]
pub struct Args {
    /// The folder; created if missing, older pages in it are replaced
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Runs `dwindle man` for this command tree.
pub fn main(args: &Args, tree: clap::Command) -> Result<(), Failure> {
    fs::create_dir_all(&args.folder)?;
    clap_mangen::generate_to(tree, &args.folder).map_err(|e| Failure::file(&args.folder, e))
}
