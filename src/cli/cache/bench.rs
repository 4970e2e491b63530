//! `dwindle cache bench`: measures caches of several lengths, numbers of texts and types.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Parser;
use dwindle_formats::output::{Claims, Kind};
use serde::Serialize;

use super::super::chart::{Axis, Chart, Series, svg};
use super::super::model::{CacheType, Runtime};
use super::super::output::{
    above_zero, at_least_one, checkpoint_path, json, line, read_text, size, table,
};
use super::super::{Failure, progress};
use super::codebook_of;
use crate::cache::{Aim, BenchOptions, Benched, CacheError, How, Memory, Sample, Timeline, bench};
use crate::kv::Encoder;

/// Measure caches of several lengths, numbers of texts and types: bytes, times, what is said from a packed one
///
/// Reads texts side by side, saves what the model keeps of them, packs, unpacks and restores it, and goes on. The model's
/// predictions are compared with those from a cache in F16 that was never packed. A number is hidden in each text, each at
/// another depth, and asked for behind it.
#[derive(Debug, Parser)]
pub struct Args {
    /// A `.gguf`, a `.dwn` or a checkpoint
    model: PathBuf,
    /// The text
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of each text
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = at_least_one, default_value = "128,512,2048")]
    lengths: Vec<usize>,
    /// Texts side by side
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = batch, default_value = "1,4")]
    batch: Vec<usize>,
    /// Types of keys and values, beside F16
    #[arg(
        long,
        value_name = "TYPE",
        value_delimiter = ',',
        default_value = "q8_0,q4_0"
    )]
    cache_type: Vec<CacheType>,
    /// Tokens behind each text whose predictions are compared
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    scored: usize,
    /// Pack by the model's codebook [default: bit by bit]
    #[arg(long, value_name = "FILE")]
    codebook: Option<PathBuf>,
    /// With a codebook: how much smaller than in F16
    #[arg(long, value_name = "N", requires = "codebook", default_value_t = 12.0, value_parser = above_zero)]
    ratio: f64,
    /// Draw bytes, times and the process's memory
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    runtime: Runtime,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// So many texts as a context may have.
fn batch(text: &str) -> Result<usize, String> {
    const MOST: usize = 256;
    match text.parse() {
        Ok(count) if (1..=MOST).contains(&count) => Ok(count),
        _ => Err(format!("expected a number from 1 to {MOST}")),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    caches: &'a [Benched],
    stages: &'a [Memory],
    memory: &'a [Sample],
}

/// Holds what is written against what is read.
fn claim(args: &Args) -> Result<(), Failure> {
    Claims::new()
        .reads("the model", [checkpoint_path(&args.model)])
        .reads("the text", [&args.text])
        .reads("the codebook", &args.codebook)
        .reads("an adapter", args.runtime.adapters())
        .writes(&args.svg)
        .check()?;
    if let Some(path) = &args.svg {
        Kind::Svg.check(path)?;
    }
    Ok(())
}

pub fn main(args: &Args) -> Result<(), Failure> {
    claim(args)?;
    let text = read_text(&args.text)?;
    let codebook = codebook_of(&args.model, args.codebook.as_ref())?;
    let encoder = codebook.as_ref().map(Encoder::new).transpose();
    let encoder = encoder.map_err(CacheError::from)?;
    let how = match &encoder {
        Some(encoder) => How::Transform(encoder, Aim::Ratio(args.ratio)),
        None => How::Lossless,
    };
    let timeline = Timeline::begin()?;
    timeline.enter("load");
    let model = args.runtime.load(&args.model)?;
    let options = BenchOptions {
        lengths: args.lengths.clone(),
        batches: args.batch.clone(),
        types: args.cache_type.iter().map(|ty| ty.ty()).collect(),
        scored: args.scored,
        context: args.runtime.context_options(),
    };
    let bar = progress::share("measuring");
    let caches = bench(
        &model,
        &text,
        how,
        &options,
        &timeline,
        &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        },
    )?;
    bar.finish_and_clear();
    let (memory, stages) = timeline.finish();
    if let Some(path) = &args.svg {
        let drawn = svg(&charts(&caches, &memory));
        dwindle_formats::output::write(path, drawn.as_bytes())?;
    }
    if args.json {
        return json(&Report {
            caches: &caches,
            stages: &stages,
            memory: &memory,
        });
    }
    print(&caches)?;
    print_stages(&stages)
}

fn print_stages(stages: &[Memory]) -> Result<(), Failure> {
    let rows = stages.iter().map(|s| {
        [
            s.stage.to_string(),
            format!("{:.2} s", s.seconds),
            size(s.most),
        ]
    });
    line(format!(
        "\n{}",
        table(["stage", ">time", ">most memory"], rows)
    ))
}

fn print(caches: &[Benched]) -> Result<(), Failure> {
    let rows = caches.iter().map(|c| {
        let s = &c.seconds;
        [
            c.length.to_string(),
            c.batch.to_string(),
            c.cache_type.clone(),
            size(c.computed),
            size(c.allocated),
            size(c.packed),
            format!("{:.2}", c.ratio),
            format!("{:.2} s", s.read),
            format!("{:.3} s", s.save),
            format!("{:.2} s", s.pack),
            format!("{:.2} s", s.unpack),
            format!("{:.3} s", s.restore),
            format!("{:.1} ms", 1000.0 * s.step),
            format!("{:.5}", c.kld),
            format!("{:.5} ± {:.5}", c.packed_kld, c.error),
            format!("{}/{}", c.found, c.hidden),
            format!("{}/{}", c.packed_found, c.hidden),
        ]
    });
    let columns = [
        ">tokens",
        ">texts",
        "type",
        ">computed",
        ">allocated",
        ">packed",
        ">ratio",
        ">to read",
        ">to save",
        ">to pack",
        ">to unpack",
        ">to restore",
        ">a token",
        ">mean KLD",
        ">of packed",
        ">found",
        ">in packed",
    ];
    line(table(columns, rows).to_string())
}

/// A line's name, and its height.
type Line = (&'static str, fn(&Benched) -> f64);

/// Bytes and times over tokens, of caches in F16, and the process's memory over time.
fn charts(caches: &[Benched], memory: &[Sample]) -> Vec<Chart> {
    let over_tokens = |title, unit, lines: &[Line]| Chart {
        title,
        x: Axis::logarithmic("tokens of all texts"),
        y: Axis::logarithmic(unit),
        series: lines
            .iter()
            .map(|(name, of)| {
                let tokens = |c: &Benched| (c.length * c.batch) as f64;
                let mut seen = BTreeSet::new();
                let all = caches.iter().filter(|c| c.cache_type == "f16");
                let all = all.filter(|c| seen.insert(c.length * c.batch));
                let points = all.map(|c| (tokens(c), of(c))).collect();
                Series {
                    name,
                    points,
                    line: true,
                }
            })
            .collect(),
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    vec![
        over_tokens(
            "What the model keeps of texts",
            "MiB",
            &[
                ("in F16", |c| c.computed as f64 / f64::from(1 << 20)),
                ("packed", |c| c.packed as f64 / f64::from(1 << 20)),
            ],
        ),
        over_tokens(
            "Time",
            "s",
            &[
                ("to read", |c| c.seconds.read),
                ("to pack", |c| c.seconds.pack),
                ("to unpack and restore", |c| {
                    c.seconds.unpack + c.seconds.restore
                }),
            ],
        ),
        Chart {
            title: "Memory of the process",
            x: Axis::even("s"),
            y: Axis::even("MiB"),
            series: vec![Series {
                name: "resident",
                points: memory.iter().map(|s| (s.seconds, mib(s.bytes))).collect(),
                line: true,
            }],
        },
    ]
}
