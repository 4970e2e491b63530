//! `dwindle workspace`: lists and removes what was measured of models.

use std::path::PathBuf;

use clap::Parser;

use super::Failure;
use super::output::{json, line, size, table};
use crate::workbench::workspace;

/// List what was measured of models, or remove it
///
/// `compress` with a target and `sweep` keep what they measure, so that the next size of a model is
/// quicker.
#[derive(Debug, Parser)]
pub struct Args {
    /// The folder [default: `dwindle` in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    workspace: Option<PathBuf>,
    /// Remove the workspace of this id, or `all`
    #[arg(long, value_name = "ID")]
    remove: Option<String>,
    /// Remove workspaces that were not used for this many days
    #[arg(long, value_name = "DAYS", conflicts_with = "remove")]
    prune: Option<u64>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs `dwindle workspace`.
pub fn main(args: &Args) -> Result<(), Failure> {
    let folder = match &args.workspace {
        Some(folder) => folder.clone(),
        None => workspace::default_folder()?,
    };
    let all = workspace::list(&folder)?;
    let is_unwanted = |w: &workspace::Listed| match (&args.remove, args.prune) {
        (Some(id), _) => id == "all" || *id == w.id,
        (None, Some(days)) => w.unused >= days * 24 * 60 * 60,
        (None, None) => false,
    };
    let (gone, left): (Vec<_>, Vec<_>) = all.into_iter().partition(is_unwanted);
    if let (Some(id), true) = (&args.remove, gone.is_empty())
        && id != "all"
    {
        return Err(Failure::Usage(format!(
            "`{}` has no workspace `{id}`; `dwindle workspace` lists them",
            folder.display()
        )));
    }
    for one in &gone {
        workspace::remove(one)?;
        eprintln!("note: removed {} ({})", one.id, size(one.bytes));
    }
    if args.json {
        return json(&left);
    }
    let rows = left.iter().map(|w| {
        [
            w.id.clone(),
            w.checkpoint.clone(),
            size(w.bytes),
            format!("{} days ago", w.unused / (24 * 60 * 60)),
        ]
    });
    line(table(["id", "checkpoint", ">size", ">used"], rows).to_string())
}
