//! `dwindle cache eval`: measures what packing costs.

use std::path::PathBuf;

use clap::Parser;
use dwindle_formats::gguf::TensorType;

use super::super::model::{Attention, Runtime};
use super::super::output::{above_zero, json, line, read_text, size, table};
use super::super::{Failure, progress};
use super::codebook_of;
use crate::cache::{Aim, CHUNK, CacheError, Candidate, EvalCacheOptions, How, Measured, evaluate};
use crate::kv::{Encoder, Ranks};

/// Measure what packing costs: bytes, time, and how far what the model then says is from what it said
///
/// Reads windows of a text, packs what the model keeps of each, unpacks and restores it, and compares the predictions of the
/// tokens that follow with those of the unpacked state.
#[derive(Debug, Parser)]
pub struct Args {
    /// A `.gguf`, a `.dwn` or a checkpoint
    model: PathBuf,
    /// The text
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// The model's codebook
    #[arg(long, value_name = "FILE")]
    codebook: Option<PathBuf>,
    /// With a codebook: ratios to measure
    #[arg(long, value_name = "N", value_parser = above_zero, value_delimiter = ',', default_value = "8,12,20")]
    ratio: Vec<f64>,
    /// Only the codebook's ratios, without other methods beside
    #[arg(long, requires = "codebook")]
    only: bool,
    /// Tokens of a window that are read and packed
    #[arg(short, long, default_value_t = 1536, value_parser = tokens)]
    ctx: usize,
    /// Tokens behind them whose predictions are compared
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = tokens)]
    scored: usize,
    /// Windows, evenly spread over the text
    #[arg(long, value_name = "N", default_value_t = 12)]
    windows: usize,
    /// Tokens that are packed together
    #[arg(long, value_name = "N", default_value_t = CHUNK, value_parser = super::pack::cells)]
    chunk: usize,
    #[command(flatten)]
    attention: Attention,
    #[command(flatten)]
    runtime: Runtime,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// So many tokens as a context may have.
fn tokens(text: &str) -> Result<usize, String> {
    const MOST: usize = 1 << 24;
    match text.parse() {
        Ok(count) if (1..=MOST).contains(&count) => Ok(count),
        _ => Err(format!("expected a number from 1 to {MOST}")),
    }
}

pub fn main(args: &Args) -> Result<(), Failure> {
    let text = read_text(&args.text)?;
    let codebook = codebook_of(&args.model, args.codebook.as_ref())?;
    let model = args.runtime.load(&args.model)?;
    let mut candidates = Vec::new();
    let ratios: Vec<String> = args
        .ratio
        .iter()
        .map(|r| format!("transform, ratio {r}"))
        .collect();
    let encoder = codebook
        .as_ref()
        .map(Encoder::new)
        .transpose()
        .map_err(CacheError::from)?;
    if let Some(encoder) = &encoder {
        for (name, ratio) in ratios.iter().zip(&args.ratio) {
            let how = How::Transform(encoder, Aim::Ratio(*ratio));
            candidates.push(Candidate { name, how });
        }
    }
    if !args.only {
        for (name, how) in [
            ("f16", How::Quantize(TensorType::F16)),
            ("lossless", How::Lossless),
            ("q8_0", How::Quantize(TensorType::Q8_0)),
            ("q4_0", How::Quantize(TensorType::Q4_0)),
            ("chunked SVD, low", How::ChunkedSvd(Ranks::level(64.0))),
            ("chunked SVD, med", How::ChunkedSvd(Ranks::level(128.0))),
            ("chunked SVD, high", How::ChunkedSvd(Ranks::level(256.0))),
        ] {
            candidates.push(Candidate { name, how });
        }
    }
    let options = EvalCacheOptions {
        read: args.ctx,
        scored: args.scored,
        windows: args.windows,
        chunk: args.chunk,
        context: args.attention.apply(args.runtime.context_options()),
    };
    let bar = progress::share("measuring");
    let found = evaluate(&model, &text, &candidates, &options, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    match args.json {
        true => json(&found),
        false => print(&found),
    }
}

fn print(found: &[Measured]) -> Result<(), Failure> {
    let rows = found.iter().map(|m| {
        [
            m.name.clone(),
            format!("{:.2}", m.ratio),
            size(m.bytes as u64),
            format!("{:.5} ± {:.5}", m.kld, m.error),
            format!("{:.3}", m.worst),
            format!("{:.2} s", m.seconds[0]),
            format!("{:.2} s", m.seconds[1]),
            format!("{:.2} s", m.seconds[2]),
            format!("{:.3} s", m.seconds[3]),
        ]
    });
    let columns = [
        "method",
        ">ratio",
        ">bytes",
        ">mean KLD",
        ">worst",
        ">to read",
        ">to pack",
        ">to unpack",
        ">to restore",
    ];
    line(table(columns, rows).to_string())
}
