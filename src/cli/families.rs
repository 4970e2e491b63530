//! `dwindle families`: lists what is converted, and what can be done with it.

use clap::Parser;
use serde::Serialize;

use super::Failure;
use super::output::{json, line, table};
use crate::architecture::{Alone, Traits, known};

/// List the families of models that are converted, and what can be done with each
///
/// A `.gguf` of any architecture that llama.cpp knows can be compressed too; the columns say what else
/// goes by the architecture.
#[derive(Debug, Parser)]
pub struct Args {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    /// Names in `architectures` of `config.json`.
    classes: &'static [&'static str],
    /// llama.cpp's name.
    architecture: &'static str,
    /// Whether types can be chosen for a size, and layers fitted to what those before them give.
    size: bool,
    /// Whether heads, experts and blocks can be removed.
    structure: bool,
    /// Whether it embeds texts and continues none.
    encodes: bool,
    /// Whether it goes back to `transformers`.
    export: bool,
}

/// Runs `dwindle families`.
pub fn main(args: &Args) -> Result<(), Failure> {
    let rows = known().into_iter().map(|family| {
        let traits = Traits::of(family.architecture);
        Row {
            classes: family.classes,
            architecture: family.architecture,
            size: traits.alone != Alone::No,
            structure: traits.alike,
            encodes: family.encodes,
            export: family.exported,
        }
    });
    let rows: Vec<Row> = rows.collect();
    if args.json {
        return json(&rows);
    }
    let mark = |is: bool| if is { "yes" } else { "-" }.to_string();
    let cells = rows.iter().map(|row| {
        [
            row.classes.join("\n"),
            row.architecture.to_string(),
            mark(row.size),
            mark(row.structure),
            mark(row.encodes),
            mark(row.export),
        ]
    });
    let columns = [
        "class in config.json",
        "llama.cpp",
        "--size",
        "fewer heads, experts, blocks",
        "encoder",
        "export",
    ];
    line(table(columns, cells).to_string())
}
