//! `dwindle cache unpack`: unpacks a saved prompt for the llama.cpp that is to read it.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use dwindle_formats::gguf::TensorType;
use dwindle_formats::output::{Claims, Kind};

use super::super::output::{json, line, size};
use super::super::{Failure, progress};
use super::blame;
use crate::cache::{open_codebook, unpack_file};
use crate::kv::{Target, Turns};

/// Unpack a saved prompt, into the form that a llama.cpp reads
///
/// Without options it has the form that it was saved in.
#[derive(Debug, Parser)]
pub struct Args {
    /// A packed file
    packed: PathBuf,
    /// The state to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// The codebook that it was packed with
    #[arg(long, value_name = "FILE")]
    codebook: Option<PathBuf>,
    /// The type of keys and values, as `--cache-type-k` and `-v` of the program that is to read it
    #[arg(long, value_name = "TYPE")]
    cache_type: Option<TensorType>,
    /// Store values by element, as without flash attention
    #[arg(long, value_enum, value_name = "WHEN")]
    v_trans: Option<Switch>,
    /// Rotate quantized keys and values, as llama.cpp does from versions 4 and 11 on
    #[arg(long, value_enum, value_name = "WHEN")]
    rotate: Option<Switch>,
    /// Sequences that the program has side by side, without `--kv-unified`
    #[arg(long, value_name = "N", value_parser = super::super::output::at_least_one)]
    streams: Option<usize>,
    /// The version of a sequence's file; a session then has 10 or 11
    #[arg(long, value_name = "N", value_parser = ["3", "4"])]
    version: Option<String>,
    /// Print JSON instead of a sentence
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

pub fn main(args: &Args) -> Result<(), Failure> {
    Claims::new()
        .reads("the packed file", [&args.packed])
        .reads("the codebook", &args.codebook)
        .writes([&args.output])
        .check()?;
    Kind::State.check(&args.output)?;
    let open = |path: &PathBuf| open_codebook(path).map_err(|e| blame(path, e));
    let codebook = args.codebook.as_ref().map(open).transpose()?;
    let is_on = |switch: Switch| switch == Switch::On;
    let target = Target {
        ty: args.cache_type,
        is_transposed: args.v_trans.map(is_on),
        turns: match args.rotate {
            Some(Switch::Off) => Turns::Off,
            Some(Switch::On) => Turns::On,
            None => Turns::Fitting,
        },
        streams: args.streams,
        version: args.version.as_deref().and_then(|v| v.parse().ok()),
    };
    let bar = progress::share("unpacking");
    let (bytes, settings) = unpack_file(
        &args.packed,
        codebook.as_ref(),
        &target,
        &args.output,
        &mut |cells| {
            bar.inc(cells as u64);
        },
    )
    .map_err(|e| blame(&args.packed, e))?;
    bar.finish_and_clear();
    if args.json {
        return json(&serde_json::json!({ "bytes": bytes, "packed_by": settings }));
    }
    line(format!("{}: {}", args.output.display(), size(bytes as u64)))
}
