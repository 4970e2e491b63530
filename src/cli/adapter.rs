//! `dwindle adapter`: a LoRA adapter of PEFT as a GGUF file.

use std::path::PathBuf;

use clap::Parser;

use super::Failure;
use super::output::{json, line, size};
use crate::workbench::adapter;

/// Convert a LoRA adapter of PEFT into a GGUF file, which `--lora` of `run`, `serve` and `eval` loads beside a model
///
/// The file holds the adapter's matrices in F32, and goes with every file made of the same checkpoint, in dwindle and in
/// llama.cpp. `compress --merge` adds an adapter to the weights instead.
#[derive(Debug, Parser)]
pub struct Args {
    /// Folder with `adapter_config.json` and `adapter_model.safetensors`
    #[arg(value_name = "DIR")]
    adapter: PathBuf,
    /// The checkpoint that it was trained on: Hugging Face folder, or name in the Hugging Face cache [default: what the
    /// adapter's configuration names]
    #[arg(long, value_name = "CHECKPOINT")]
    base: Option<PathBuf>,
    /// Output, `.gguf`; an existing file is replaced
    #[arg(short, long)]
    output: PathBuf,
    /// Print JSON instead of a sentence
    #[arg(long)]
    json: bool,
}

/// Runs `dwindle adapter`.
pub fn main(args: &Args) -> Result<(), Failure> {
    let written = adapter(&args.adapter, args.base.as_deref(), &args.output)?;
    if args.json {
        return json(&written);
    }
    line(format!(
        "{}: {} bytes ({}), changes {} weights of `{}`",
        args.output.display(),
        written.bytes,
        size(written.bytes),
        written.weights,
        written.base.display()
    ))
}
