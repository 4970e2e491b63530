//! `dwindle export`: writes the stock `.gguf` of a container, or a Hugging Face folder.

use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use dwindle_formats::container::Container;
use dwindle_formats::gguf::refuse_split;
use dwindle_formats::output::Claims;

use super::output::{json, line, size};
use super::resources::Resources;
use super::{Failure, progress};
use crate::architecture::{self, to_huggingface};
use crate::checkpoint::huggingface::HuggingFace;
use crate::checkpoint::{self, Caches};
use crate::mapped::Mapping;
use crate::runtime::{StockModel, export};

/// Write the stock, dense `.gguf` of a container, or the Hugging Face folder of a `.gguf`
#[derive(Debug, Parser)]
pub struct Args {
    /// A `.dwn` container; for `--format hf` a `.gguf`
    file: PathBuf,
    /// Output: a `.gguf`, or the new folder
    #[arg(short, long)]
    output: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Gguf)]
    format: Format,
    /// Hugging Face folder that the model came from; its configuration and tokenizer are copied
    #[arg(long, value_name = "FOLDER", required_if_eq("format", "hf"))]
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    resources: Resources,
    /// Print JSON instead of a line
    #[arg(long)]
    json: bool,
}

/// What export writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A stock GGUF file
    Gguf,
    /// A folder for `transformers`
    Hf,
}

pub fn main(args: &Args) -> Result<(), Failure> {
    if let (Format::Hf, Some(origin)) = (args.format, &args.checkpoint) {
        return folder(args, origin);
    }
    let read = Claims::new().reads("the file to export", [&args.file]);
    read.writes([&args.output]).check()?;
    if args.output.extension().is_none_or(|e| e != "gguf") {
        return Err(Failure::Usage(format!(
            "`{}` does not end in `.gguf`, which is what export writes",
            args.output.display()
        )));
    }
    refuse_split(&args.file).map_err(|e| Failure::file(&args.file, e))?;
    let bytes = Mapping::open(&args.file)?;
    let container = Container::read(&bytes).map_err(|e| Failure::file(&args.file, e))?;
    let stock = StockModel::from_container(&container, &bytes);
    let bar = progress::bytes(stock.data_bytes(), "exporting");
    let options = args.resources.options(false);
    let summary = export(
        &stock,
        &container.plan,
        &container.digest(),
        &args.output,
        options,
        &mut |n| bar.inc(n),
    )?;
    bar.finish_and_clear();
    if args.json {
        return json(&summary);
    }
    line(format!(
        "{}: {} bytes ({})",
        args.output.display(),
        summary.bytes,
        size(summary.bytes)
    ))
}

/// Writes a Hugging Face folder.
fn folder(args: &Args, origin: &Path) -> Result<(), Failure> {
    let origin =
        checkpoint::resolve(origin, &Caches::from_env()).map_err(architecture::Error::from)?;
    let origin = HuggingFace::open(&origin).map_err(architecture::Error::from)?;
    let (source, model) = architecture::open(&args.file)?;
    let checkpoint = to_huggingface(&origin, &model, source.as_ref())?;
    let (tensors, bytes) = (checkpoint.len(), checkpoint.bytes());
    checkpoint.write(&origin, &args.output)?;
    if args.json {
        return json(&serde_json::json!({ "tensors": tensors, "bytes": bytes }));
    }
    line(format!(
        "{}: {tensors} tensors, {bytes} bytes ({})",
        args.output.display(),
        size(bytes)
    ))
}
