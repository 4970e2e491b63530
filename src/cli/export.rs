//! `dwindle export`: the stock, dense file from a container.

use std::path::PathBuf;

use clap::Parser;
use dwindle::checkpoint;
use dwindle::llama::mapping::Mapping;
use dwindle::pipeline::{Options, StockModel, export};
use dwindle_formats::container::Container;

use super::compress::available_threads;
use super::output::{json, line, size};
use super::{Failure, progress};

/// Write a stock `.gguf`, factors multiplied out, from a container
#[derive(Debug, Parser)]
pub struct Args {
    /// A `.dwn` container
    file: PathBuf,
    /// Output `.gguf`
    #[arg(short, long)]
    output: PathBuf,
    /// Print JSON instead of a line
    #[arg(long)]
    json: bool,
}

pub fn main(args: &Args) -> Result<(), Failure> {
    if args.output.extension().is_none_or(|e| e != "gguf") {
        return Err(Failure::Usage(format!(
            "`{}` does not end in `.gguf`, which is what export writes",
            args.output.display()
        )));
    }
    let bytes = Mapping::open(&args.file)?;
    let container = Container::read(&bytes).map_err(|e| Failure::file(&args.file, e))?;
    let stock = StockModel::from_container(&container, &bytes);
    let inputs = checkpoint::fingerprint(&args.file, &[])?;
    let bar = progress::bytes(stock.data_bytes(), "exporting");
    let options = Options {
        threads: available_threads(),
        memory: 1 << 30,
        compress: false,
    };
    let summary = export(
        &stock,
        &container.plan,
        &inputs,
        &args.output,
        options,
        &mut |n| bar.inc(n),
    )?;
    bar.finish_and_clear();
    if args.json {
        return json(&summary);
    }
    line(format!("{} bytes ({})", summary.bytes, size(summary.bytes)))
}
