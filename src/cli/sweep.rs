//! `dwindle sweep`: compares files of several sizes with llama-quantize's file types.

use std::path::{Path, PathBuf};

use clap::Parser;
use dwindle_formats::output::{Claims, Kind, folder_of};
use serde::Serialize;

use super::Failure;
use super::chart::{Axis, Chart, Series, svg};
use super::compress::rounding;
use super::devices::Devices;
use super::output::{at_least_one, checkpoint_path, json, line, size, table};
use super::progress::Terminal;
use super::resources::Resources;
use super::target::{ChoosingArgs, FileSize, file_size};
use crate::architecture;
use crate::checkpoint::{self, Caches};
use crate::plan::{Base, Subject};
use crate::target::{BudgetError, Rung, rung, rungs, smallest, types_for};
use crate::workbench::{
    Check, Point, Row, Study, Sweep, Text, Workbench, knee, mean_ratio, smallest_within, sweep,
    thriftiest, workspace,
};

/// Measure the frontier: the best files of several sizes beside llama-quantize's file types
///
/// For each of llama-quantize's file types (or each of --sizes) writes the best file of at most
/// that size, and measures both on --eval. Recommends the knee: the size beyond which more bytes
/// gain least.
#[derive(Debug, Parser)]
pub struct Args {
    /// Hugging Face folder, name in the Hugging Face cache, or GGUF file
    checkpoint: PathBuf,
    /// Text to measure the model on and to fit its layers to, UTF-8 [default: a mixed one that comes with dwindle]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Text to measure files on, UTF-8 [default: --text, or another that comes with dwindle]
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// Chunks of 512 tokens to measure files on
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = at_least_one)]
    chunks: usize,
    /// Sizes in bytes or in percent of the checkpoint's weights, instead of the file types' sizes
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = file_size)]
    sizes: Vec<FileSize>,
    /// llama-quantize's file types to compare with
    #[arg(
        long,
        value_name = "TYPES",
        value_delimiter = ',',
        conflicts_with = "sizes"
    )]
    ladder: Vec<String>,
    #[command(flatten)]
    choosing: ChoosingArgs,
    /// How to round weights: `output` or `nearest`
    #[arg(long, value_name = "HOW", value_parser = rounding, default_value = "output")]
    rounding: crate::plan::Rounding,
    /// Draw the frontier into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Recommend a size that takes at least this much less memory than the checkpoint, such as
    /// `60%`
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    target_memory_reduction: Option<f64>,
    /// Recommend a size whose perplexity is at most this much above the checkpoint's, such as `1%`
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_quality_loss: Option<f64>,
    /// Also write this many files of random types (2 or more), and report how well the predicted
    /// divergence ranks them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    check: Option<u64>,
    #[command(flatten)]
    resources: Resources,
    #[command(flatten)]
    devices: Devices,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').trim().parse::<f64>() {
        Ok(p) if p > 0.0 && p < 100.0 => Ok(p / 100.0),
        _ => Err("expected a percentage between 0 and 100, such as `60%`".into()),
    }
}

#[derive(Debug, Serialize)]
struct Report {
    checkpoint_bytes: u64,
    rows: Vec<Row>,
    /// The geometric mean of our divergence over the file types'.
    ratio: Option<f64>,
    recommendation: Vec<String>,
    check: Option<Check>,
}

/// Runs `dwindle sweep`.
pub fn main(args: &Args) -> Result<(), Failure> {
    args.claim()?;
    let path = checkpoint::resolve(&args.checkpoint, &Caches::from_env())
        .map_err(architecture::Error::from)?;
    let (source, model) = architecture::open(&path)?;
    let mut bench = Workbench {
        path: &path,
        subject: Subject::unmeasured(&model, source.as_ref()),
        original: Subject::unmeasured(&model, source.as_ref()),
        rounding: args.rounding,
        options: args.resources.options(false),
        placement: &args.devices.placement()?,
        scratch: args.svg.as_deref().map_or(Path::new("."), folder_of),
        study: None,
        progress: &Terminal::default(),
    };
    let whole = bench.subject.bytes();
    let text = args.text.as_deref().map(Text::read).transpose()?;
    let eval = args.eval.as_deref().map(Text::read).transpose()?;
    let choosing = args.choosing.choosing();
    let workspaces = match &args.choosing.workspace {
        Some(folder) => folder.clone(),
        None => workspace::default_folder()?,
    };
    let ladder = args.ladder()?;
    let types = types_for(&choosing.types, args.fewest_bits(&bench, &ladder)?);
    let study = Study::of(&bench, &workspaces, text.as_ref(), (&choosing, &types))?;
    bench.subject.measured = study.measured();
    bench.study = Some(&study);
    let own = study.held_out.as_ref().unwrap_or(&study.text);
    let gate = args.choosing.gate()?;
    let wanted = Sweep {
        sizes: args.sizes(&bench, &ladder)?,
        choosing: &choosing,
        study: &study,
        eval: eval.as_ref().unwrap_or(own),
        gate: gate.as_ref(),
        chunks: args.chunks,
        check: args.check,
    };
    let (rows, check) = sweep(&bench, wanted)?;
    let report = Report {
        checkpoint_bytes: whole,
        ratio: mean_ratio(&rows),
        recommendation: args.recommend(&rows, whole),
        rows,
        check,
    };
    if args.json {
        json(&report)?;
    } else {
        print(&report)?;
    }
    match &args.svg {
        Some(file) => Ok(dwindle_formats::output::write(
            file,
            draw(&report).as_bytes(),
        )?),
        None => Ok(()),
    }
}

impl Args {
    /// Holds the outputs against the inputs, before measurements that may take hours.
    fn claim(&self) -> Result<(), Failure> {
        Claims::new()
            .reads("the checkpoint", [checkpoint_path(&self.checkpoint)])
            .reads("a text", &self.text)
            .reads("a text", &self.eval)
            .reads("a text", &self.choosing.gate)
            .writes(&self.svg)
            .check()?;
        Ok(self.svg.iter().try_for_each(|path| Kind::Svg.check(path))?)
    }

    /// The file types of `--ladder`.
    fn ladder(&self) -> Result<Vec<Base>, Failure> {
        let all = self.ladder.iter().map(|name| name.parse());
        Ok(all.collect::<Result<_, _>>()?)
    }

    /// The bits a weight of the smallest size, where that is known before the model is measured.
    fn fewest_bits(&self, bench: &Workbench<'_>, ladder: &[Base]) -> Result<Option<f64>, Failure> {
        let whole = bench.subject.bytes();
        let given = self.sizes.iter().map(|s| s.of(whole)).min();
        let least = match given {
            Some(bytes) => Some(bytes),
            None => smallest(&bench.task(), ladder).map_err(of_plan)?,
        };
        Ok(least.map(|bytes| 8.0 * bytes as f64 / bench.subject.elements() as f64))
    }

    /// Sizes of the files, those of llama-quantize's file types where none are given, the largest first.
    fn sizes(
        &self,
        bench: &Workbench<'_>,
        ladder: &[Base],
    ) -> Result<Vec<(Option<Rung>, u64)>, Failure> {
        if !self.sizes.is_empty() {
            let whole = bench.subject.bytes();
            return Ok(self.sizes.iter().map(|s| (None, s.of(whole))).collect());
        }
        let task = bench.task();
        let one = |base: &Base| rung(&task, base).map_err(of_plan);
        let mut all = match ladder {
            [] => rungs(&task),
            own => own.iter().map(one).collect::<Result<_, _>>()?,
        };
        all.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(a.file_type.cmp(&b.file_type)));
        let sized = |rung: Rung| {
            let bytes = rung.bytes;
            (Some(rung), bytes)
        };
        Ok(all.into_iter().map(sized).collect())
    }

    /// The recommendations, each in a sentence.
    fn recommend(&self, rows: &[Row], whole: u64) -> Vec<String> {
        let words = |row: &Row| {
            format!(
                "{} bytes ({:.0} % less than the checkpoint; perplexity {:+.2} %, KL divergence {:.4})",
                row.own.bytes,
                (1.0 - row.own.bytes as f64 / whole as f64) * 100.0,
                (row.own.ratio - 1.0) * 100.0,
                row.own.kld
            )
        };
        let mut out = Vec::new();
        if let Some(less) = self.target_memory_reduction {
            let percent = less * 100.0;
            out.push(match thriftiest(rows, whole, less) {
                Some(row) => format!("At least {percent:.0} % less memory: {}.", words(row)),
                None => format!(
                    "None of these files takes {percent:.0} % less memory; try smaller `--sizes`."
                ),
            });
        }
        if let Some(loss) = self.max_quality_loss {
            let percent = loss * 100.0;
            out.push(match smallest_within(rows, loss) {
                Some(row) => format!("At most {percent:.1} % worse: {}.", words(row)),
                None => {
                    format!("None of these files is within {percent:.1} %; try larger `--sizes`.")
                }
            });
        }
        if let Some(row) = knee(rows) {
            out.push(format!("The knee: {}.", words(row)));
        }
        out
    }
}

/// A file type that the model can't have is a mistake in the request, as in `compress`.
fn of_plan(error: BudgetError) -> Failure {
    match error {
        BudgetError::Plan(e) => e.into(),
        e => e.into(),
    }
}

fn draw(report: &Report) -> String {
    let points = |get: fn(&Row) -> Option<&Point>| -> Vec<(f64, f64)> {
        let all = report.rows.iter().filter_map(get);
        all.map(|p| (p.bytes as f64 / 1e6, p.kld)).collect()
    };
    let own = Series {
        name: "dwindle",
        points: points(|r| Some(&r.own)),
        line: true,
    };
    let plain = Series {
        name: "llama-quantize",
        points: points(|r| r.plain.as_ref()),
        line: false,
    };
    let mut charts = vec![Chart {
        title: "Mean KL divergence by size",
        x: Axis::even("size in MB"),
        y: Axis::logarithmic("KL divergence"),
        series: vec![own, plain],
    }];
    if let Some(check) = &report.check {
        charts.push(Chart {
            title: "Files of random types",
            x: Axis::logarithmic("predicted KL divergence"),
            y: Axis::logarithmic("measured"),
            series: vec![Series {
                name: "files",
                points: check.files.clone(),
                line: false,
            }],
        });
    }
    svg(&charts)
}

fn print(report: &Report) -> Result<(), Failure> {
    let cell =
        |point: Option<&Point>, get: &dyn Fn(&Point) -> String| point.map_or("-".into(), get);
    let rows = report.rows.iter().map(|row| {
        let plain = row.plain.as_ref();
        [
            row.file_type.clone().unwrap_or("-".into()),
            cell(plain, &|p| p.bytes.to_string()),
            cell(plain, &|p| format!("{:.3}", p.perplexity)),
            cell(plain, &|p| format!("{:.4}", p.kld)),
            row.own.bytes.to_string(),
            format!("{:.3}", row.own.perplexity),
            format!("{:.4}", row.own.kld),
            format!("{:.1}", row.own.same_top * 100.0),
            cell(plain, &|p| format!("{:.2}", row.own.kld / p.kld)),
            match (plain.and_then(|p| p.gate_kld), row.own.gate_kld) {
                (Some(plain), Some(own)) => format!("{own:.4} / {plain:.4}"),
                (None, Some(own)) => format!("{own:.4}"),
                _ => "-".into(),
            },
        ]
    });
    let columns = [
        "llama-quantize",
        ">bytes",
        ">PPL",
        ">KLD",
        ">our bytes",
        ">PPL",
        ">KLD",
        ">same top %",
        ">ratio",
        ">second text",
    ];
    line(table(columns, rows).to_string())?;
    if let Some(check) = &report.check {
        line(format!(
            "{} files of random types: rank correlation of predicted and measured divergence {:.3}",
            check.files.len(),
            check.correlation
        ))?;
    }
    if let Some(ratio) = report.ratio {
        line(format!("geometric mean of the ratios {ratio:.3}"))?;
    }
    line(format!("checkpoint {}", size(report.checkpoint_bytes)))?;
    for text in &report.recommendation {
        line(text)?;
    }
    Ok(())
}
