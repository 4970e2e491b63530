//! `dwindle bench`: measures speed and memory.

use std::path::PathBuf;

use clap::Parser;
use serde::Serialize;

use super::Failure;
use super::model::Runtime;
use super::output::{json, line, size, table};
use crate::eval::{Speed, SpeedOptions, peak_memory, speed};

/// Measure prompt and generation speed, load time and memory
///
/// Reports medians over several runs; with a reference, runs alternate between the two.
#[derive(Debug, Parser)]
pub struct Args {
    /// A `.gguf`, a `.dwn` or a checkpoint
    file: PathBuf,
    /// Also measure this `.gguf`, `.dwn` or checkpoint, in alternating runs
    #[arg(long, value_name = "FILE|CHECKPOINT")]
    reference: Option<PathBuf>,
    /// Tokens of the prompt
    #[arg(short, long, default_value_t = 512)]
    prompt: u32,
    /// Tokens to generate
    #[arg(short = 'n', long = "predict", default_value_t = 64)]
    predict: u32,
    /// Runs of each, after one warm-up run
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    runtime: Runtime,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    file: Speed,
    reference: Option<Speed>,
    peak_memory: Option<u64>,
}

pub fn main(args: &Args) -> Result<(), Failure> {
    let mut models = vec![args.runtime.load(&args.file)?];
    if let Some(reference) = &args.reference {
        models.push(args.runtime.load(reference)?);
    }
    let options = SpeedOptions {
        prompt: args.prompt,
        generate: args.predict,
        runs: args.runs,
        threads: args.runtime.threads(),
    };
    let mut speeds = speed(&models.iter().collect::<Vec<_>>(), &options)?.into_iter();
    let Some(file) = speeds.next() else {
        return Err(Failure::Input("nothing was measured".into()));
    };
    let report = Report {
        file,
        reference: speeds.next(),
        peak_memory: peak_memory(),
    };
    if args.json {
        return json(&report);
    }
    print(args, &report)
}

fn print(args: &Args, report: &Report) -> Result<(), Failure> {
    let rates = |s: &Speed| {
        [
            (
                format!("prompt of {}, tokens/s", args.prompt),
                s.prompt_per_second,
            ),
            (
                format!("generating {}, tokens/s", args.predict),
                s.generated_per_second,
            ),
        ]
    };
    let mut rows: Vec<[String; 4]> = Vec::new();
    let blank = String::new;
    for (i, (name, rate)) in rates(&report.file).into_iter().enumerate() {
        let other = report.reference.as_ref().map(|r| rates(r)[i].1);
        rows.push([
            name,
            format!("{rate:.1}"),
            other.map_or_else(blank, |r| format!("{r:.1}")),
            other.map_or_else(blank, |r| format!("{:.2}", rate / r)),
        ]);
    }
    let sizes = |s: &Speed| {
        [
            ("model", s.model_bytes),
            ("keys and values", s.context_bytes),
            ("scratch", s.compute_bytes),
        ]
    };
    for (i, (name, bytes)) in sizes(&report.file).into_iter().enumerate() {
        let other = report.reference.as_ref().map(|r| sizes(r)[i].1);
        let ratio = |r: u64| format!("{:.2}", bytes as f64 / r.max(1) as f64);
        rows.push([
            format!("memory: {name}"),
            size(bytes),
            other.map_or_else(blank, size),
            other.map_or_else(blank, ratio),
        ]);
    }
    rows.push([
        "load time, s".into(),
        format!("{:.2}", report.file.load_seconds),
        report
            .reference
            .as_ref()
            .map_or_else(blank, |r| format!("{:.2}", r.load_seconds)),
        blank(),
    ]);
    line(table(["measure", ">file", ">reference", ">ratio"], rows).to_string())?;
    if let Some(bytes) = report.peak_memory {
        line(format!("peak memory of this process: {}", size(bytes)))?;
    }
    Ok(())
}
