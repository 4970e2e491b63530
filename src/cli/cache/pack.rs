//! `dwindle cache pack`: packs a saved prompt.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use dwindle_formats::gguf::TensorType;
use dwindle_formats::output::{Claims, Kind};
use dwindle_formats::packed::MAX_CELLS;

use super::super::output::{above_zero, json, line, size};
use super::super::{Failure, progress};
use super::blame;
use crate::cache::{Aim, CHUNK, CacheError, How, open_codebook, pack_file};
use crate::kv::codebook::Codebook;
use crate::kv::{Encoder, Packing, Ranks};

/// Pack a saved prompt
#[derive(Debug, Parser)]
pub struct Args {
    /// A file of a sequence or a session that llama.cpp saved
    state: PathBuf,
    /// The packed file (`.dwkv`)
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// How to pack [default: transform with a codebook, else lossless]
    #[arg(long, value_enum, value_name = "METHOD")]
    method: Option<MethodName>,
    /// Bit by bit: the same as `--method lossless`
    #[arg(long, conflicts_with = "method")]
    lossless: bool,
    /// The model's codebook, which `dwindle cache calibrate` makes
    #[arg(long, value_name = "FILE")]
    codebook: Option<PathBuf>,
    /// With a codebook: bytes of keys and values in F16 for each packed one
    #[arg(long, value_name = "N", value_parser = above_zero, default_value = "12")]
    ratio: f64,
    /// With a codebook: the mean divergence that its trials may have had
    #[arg(long, value_name = "NATS", value_parser = above_zero, conflicts_with = "ratio")]
    max_kld: Option<f64>,
    /// With chunked-svd: rank 128 of keys and 64, 128 or 256 of values for layers of 1024 elements, others in
    /// proportion
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "med")]
    level: Level,
    /// With chunked-svd: ranks grow no further once so much of the sum of squares is kept
    #[arg(long, value_name = "PART", value_parser = above_zero, default_value = "1")]
    energy: f64,
    /// With quantize: the type
    #[arg(long, value_name = "TYPE", default_value = "q4_0")]
    cache_type: TensorType,
    /// Tokens that are packed together
    #[arg(long, value_name = "N", default_value_t = CHUNK, value_parser = cells)]
    chunk: usize,
    /// Print JSON instead of a sentence
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum MethodName {
    /// By a codebook
    Transform,
    /// As leading singular triples of each chunk and layer, in 8 bits
    ChunkedSvd,
    /// In one of ggml's types
    Quantize,
    /// Bit by bit
    Lossless,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    Low,
    Med,
    High,
}

impl Level {
    fn values(self) -> f64 {
        match self {
            Level::Low => 64.0,
            Level::Med => 128.0,
            Level::High => 256.0,
        }
    }
}

pub fn main(args: &Args) -> Result<(), Failure> {
    Claims::new()
        .reads("the state", [&args.state])
        .reads("the codebook", &args.codebook)
        .writes([&args.output])
        .check()?;
    Kind::PackedState.check(&args.output)?;
    let open = |path: &PathBuf| open_codebook(path).map_err(|e| blame(path, e));
    let codebook = args.codebook.as_ref().map(open).transpose()?;
    let encoder = codebook
        .as_ref()
        .map(Encoder::new)
        .transpose()
        .map_err(CacheError::from)?;
    let how = how(args, encoder.as_ref())?;
    let bar = progress::share("packing");
    let packing = pack_file(&args.state, how, args.chunk, &args.output, &mut |cells| {
        bar.inc(cells as u64);
    })
    .map_err(|e| blame(&args.state, e))?;
    bar.finish_and_clear();
    if let (How::Transform(_, Aim::Ratio(ratio)), true) = (how, packing.ratio() < args.ratio) {
        eprintln!(
            "note: these {} tokens can't be packed to 1/{ratio}: what is kept bit by bit and checksums take too much",
            packing.cells
        );
    }
    if args.json {
        return json(&packing);
    }
    line(said(args, &packing, codebook.as_ref()))
}

/// Tokens of a record.
pub(super) fn cells(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=MAX_CELLS as usize).contains(&count) => Ok(count),
        _ => Err(format!("expected a number from 1 to {MAX_CELLS}")),
    }
}

fn how<'a>(args: &Args, encoder: Option<&'a Encoder<'a>>) -> Result<How<'a>, Failure> {
    let method = match (args.method, args.lossless, encoder) {
        (Some(method), _, _) => method,
        (None, false, Some(_)) => MethodName::Transform,
        _ => MethodName::Lossless,
    };
    Ok(match (method, encoder) {
        (MethodName::Lossless, _) => How::Lossless,
        (MethodName::Quantize, _) => How::Quantize(args.cache_type),
        (MethodName::ChunkedSvd, _) => How::ChunkedSvd(Ranks {
            energy: args.energy,
            ..Ranks::level(args.level.values())
        }),
        (MethodName::Transform, Some(encoder)) => How::Transform(
            encoder,
            match args.max_kld {
                Some(kld) => Aim::Kld(kld),
                None => Aim::Ratio(args.ratio),
            },
        ),
        (MethodName::Transform, None) => {
            return Err(Failure::Usage(
                "`--method transform` needs the model's codebook: make one with `dwindle cache calibrate`, and name it \
                 with `--codebook`"
                    .into(),
            ));
        }
    })
}

fn said(args: &Args, packing: &Packing, codebook: Option<&Codebook>) -> String {
    let expected = match (&packing.settings.method, codebook) {
        (crate::kv::Method::Transform { step, .. }, Some(codebook)) => codebook.kld_at(*step),
        _ => None,
    };
    let expected = expected.map_or(String::new(), |kld| {
        format!("; the codebook's trials had a mean KLD of {kld:.5} at this step")
    });
    format!(
        "{}: {}, {} tokens, 1/{:.2} of {} in F16{expected}",
        args.output.display(),
        size(packing.bytes),
        packing.cells,
        packing.ratio(),
        size(packing.f16_bytes),
    )
}
