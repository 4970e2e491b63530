//! `dwindle join`: brings together what parts of a measurement found on several machines.

use std::path::PathBuf;

use clap::Parser;

use super::Failure;
use super::output::line;
use crate::workbench::workspace;

/// Bring together what `compress --part` measured on machines that share no folder
///
/// Copies the parts into one workspace, where `compress` without `--part` finds them. Machines that share the
/// folder of their workspaces need no `join`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Folders of workspaces from other machines
    #[arg(required = true, value_name = "DIR")]
    from: Vec<PathBuf>,
    /// The folder to bring them into [default: `dwindle` in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
}

/// Runs `dwindle join`.
pub fn main(args: &Args) -> Result<(), Failure> {
    let into = match &args.workspace {
        Some(folder) => folder.clone(),
        None => workspace::default_folder()?,
    };
    for file in workspace::join(&args.from, &into)? {
        line(file.display().to_string())?;
    }
    Ok(())
}
