//! `dwindle compress`: checkpoint in, smaller file out.

use std::path::PathBuf;

use clap::Parser;
use dwindle::architecture::{self, Model, role};
use dwindle::checkpoint;
use dwindle::eval::peak_memory;
use dwindle::llama::mixture::FILE_TYPES;
use dwindle::pipeline::{self, FitOptions, Inputs, Options, PipelineError, Summary};
use dwindle::plan::{self, PRESETS, Plan, Recipe};
use dwindle::statistics::{Diagnosis, Identity, Importance, Measured, Statistics};
use dwindle::structure::Wish;
use dwindle_formats::container::{StoredTensor, check_destination};
use fs_err as fs;
use serde::Serialize;

use super::fitting::fit_layers;
use super::output::{at_least_one, json, line, parse_bytes, ranks, shape, size, table, types};
use super::{Failure, progress, structure};

/// Convert a checkpoint into a smaller file
#[derive(Debug, Parser)]
#[command(after_long_help = presets_help())]
pub struct Args {
    /// Hugging Face folder, name in the Hugging Face cache (`Qwen/Qwen3-0.6B`), or GGUF file
    checkpoint: PathBuf,
    /// Output: `.gguf` for any llama.cpp, `.dwn` for the compressed container
    #[arg(short, long, required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Preset or llama-quantize's file type, listed under --help
    #[arg(long, conflicts_with = "recipe", required_unless_present = "recipe")]
    preset: Option<String>,
    /// Recipe: TOML rules from roles, layers and names to methods
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Importance weights: statistics of `dwindle calibrate`, or the GGUF file of llama-imatrix
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// Statistics of `dwindle calibrate`: `svd` fits the layers' outputs instead of their weights,
    /// `wanda` and `sparsegpt` need them, and they serve as importance weights
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Output of `dwindle diagnose`: what `rank = "auto"` shares its budget by
    #[arg(long, value_name = "FILE")]
    diagnosis: Option<PathBuf>,
    /// Remove feed-forward columns until this fraction of the layers' parameters is left; beside any
    /// preset. The result is smaller and faster in any llama.cpp. Needs --stats, and for a Llama
    /// --diagnosis
    #[arg(long, value_name = "FRACTION")]
    keep: Option<f64>,
    /// Fit what is compressed of each layer to what the compressed layers before it give, on a text.
    /// Runs the checkpoint and a copy in F16 side by side, on the CPU
    #[arg(long, requires = "text")]
    sequential: bool,
    /// The text of --sequential, and of what `[structure]` decides by a text, UTF-8
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Chunks of the text, of 512 tokens, that are evaluated at once
    #[arg(long, default_value_t = 64, value_name = "N", requires = "text", value_parser = at_least_one)]
    chunks: usize,
    /// Print the plan with its bytes and stop
    #[arg(long)]
    dry_run: bool,
    /// Memory for tensors under way; one tensor above it still passes, alone
    #[arg(long, default_value = "1G", value_parser = parse_bytes, value_name = "BYTES")]
    memory: u64,
    /// Worker threads [default: one per core]
    #[arg(short, long)]
    threads: Option<usize>,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// What a `.dwn` or `.gguf` extension asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stock,
    Container,
}

pub fn main(args: &Args) -> Result<(), Failure> {
    let kind = args.output.as_deref().map(kind_of).transpose()?;
    if let Some(output) = args.output.as_deref().filter(|_| !args.dry_run) {
        // Before a plan that may take minutes.
        check_destination(output).map_err(PipelineError::from)?;
    }
    let mut recipe = match (&args.recipe, &args.preset) {
        (Some(path), _) => fs::read_to_string(path)?
            .parse::<Recipe>()
            .map_err(|e| Failure::file(path, e))?,
        (None, Some(name)) => plan::preset(name),
        (None, None) => return Err(Failure::Usage("give `--preset` or `--recipe`".into())),
    };
    if let Some(keep) = args.keep {
        recipe = recipe.with_structure(Wish::keep(keep))?;
    }
    let importance = args
        .importance
        .as_deref()
        .map(Importance::open)
        .transpose()?;
    let path = checkpoint::resolve(&args.checkpoint, &checkpoint::Caches::from_env())
        .map_err(architecture::Error::from)?;
    let (source, model) = architecture::open(&path)?;
    let statistics = args.stats.as_deref().map(Statistics::open).transpose()?;
    if let Some(statistics) = &statistics {
        statistics.check_model(&model, source.as_ref())?;
    }
    let diagnosis = match &args.diagnosis {
        Some(file) => Some(Diagnosis::open(
            file,
            &Identity::of(&model, source.as_ref())?,
        )?),
        None => None,
    };
    let importance = importance.or_else(|| statistics.as_ref().map(Importance::from_statistics));
    let mut measured = Measured {
        importance: importance.as_ref(),
        statistics: statistics.as_ref(),
        diagnosis: diagnosis.as_ref(),
    };
    let text = args.text.as_deref().map(|path| structure::Text {
        path,
        options: args.fit_options(),
        sequential: args.sequential && !args.dry_run,
    });
    let watches = |wish: &Wish| wish.needs_text();
    if text.is_some() && !args.sequential && !recipe.structure.as_ref().is_some_and(watches) {
        let use_of_it = "`--text` goes with `--sequential`, or with `key_length` or a number for `drop` in `[structure]`";
        return Err(Failure::Usage(use_of_it.into()));
    }
    let whole = model;
    let smaller = match &recipe.structure {
        Some(wish) => Some(structure::shrink(
            wish,
            &recipe,
            &path,
            &whole,
            source.as_ref(),
            &measured,
            text.as_ref(),
        )?),
        None => None,
    };
    let model = match &smaller {
        Some(smaller) => {
            eprintln!("note: {}", smaller.report.line(&whole));
            measured = Measured {
                importance: smaller.importance.as_ref(),
                ..Measured::default()
            };
            &smaller.model
        }
        None => &whole,
    };
    let plan = plan::resolve(&recipe, model, source.as_ref(), &measured)?;

    if kind == Some(Kind::Stock) {
        refuse_factors(&plan)?;
    }
    report_fallbacks(&plan);
    report_zeros(&plan, kind);
    let Some(output) = args.output.as_deref().filter(|_| !args.dry_run) else {
        return print_plan(&plan, args.json);
    };
    refuse_overwriting_source(&path, output)?;

    let mut identity = checkpoint::fingerprint(
        &path,
        &[
            args.importance.as_deref(),
            args.stats.as_deref(),
            args.diagnosis.as_deref(),
        ],
    )?;
    if smaller.is_some() {
        let own = dwindle::structure::digest(model);
        identity.iter_mut().zip(own).for_each(|(a, b)| *a ^= b);
    }
    let mut inputs = Inputs {
        model,
        source: source.as_ref(),
        measured,
        fitted: None,
        identity: &identity,
    };
    let fitted = match &args.text {
        // A smaller model was fitted while it was made.
        _ if smaller.is_some() => None,
        Some(text) if args.sequential => Some(fit_layers(
            &args.fit_options(),
            &path,
            &plan,
            &inputs,
            text,
        )?),
        _ => None,
    };
    inputs.fitted = fitted.as_ref();
    let bar = progress::bytes(plan.bytes(), "compressing");
    let options = Options {
        threads: args.threads.unwrap_or_else(available_threads),
        memory: args.memory,
        compress: kind == Some(Kind::Container),
    };
    let summary = pipeline::compress(&plan, &inputs, output, options, &mut |n| bar.inc(n))?;
    bar.finish_and_clear();
    if summary.resumed_tensors > 0 {
        eprintln!(
            "note: {} tensors were already finished by an interrupted run",
            summary.resumed_tensors
        );
    }
    print_summary(
        &plan,
        model,
        smaller.as_ref().map(|s| &s.report),
        &summary,
        args,
    )
}

impl Args {
    fn fit_options(&self) -> FitOptions {
        FitOptions {
            ctx: 512,
            chunks: self.chunks,
            threads: self.threads.map(|n| n as u32),
        }
    }
}

fn presets_help() -> String {
    let mut text = String::from("Presets:\n");
    for p in PRESETS {
        text.push_str(&format!("\n  {}: {}\n", p.name, p.about));
        for l in p.recipe.lines() {
            text.push_str(&format!("      {l}\n"));
        }
    }
    text.push_str(
        "\nZeros (`magnitude`, `wanda`, `sparsegpt`, `sparse-low-rank`) make a `.dwn` smaller. Stock \
         llama.cpp computes with them as with any other weight and gets no faster.\n",
    );
    let types: Vec<&str> = FILE_TYPES.iter().map(|t| t.name).collect();
    text.push_str("\nFile types, with llama-quantize's mixtures:\n  ");
    text.push_str(&types.join(", "));
    text.push_str(
        "\n\nWhere a row length does not divide into a type's blocks, the next type with blocks of \
         32 takes its place (q4_k: q5_0, q5_k: q5_1, q6_k: q8_0, smaller k- and i-quants: iq4_nl), \
         or f16; each such case is reported.",
    );
    text
}

pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

fn kind_of(output: &std::path::Path) -> Result<Kind, Failure> {
    match output.extension().and_then(|e| e.to_str()) {
        Some("gguf") => Ok(Kind::Stock),
        Some("dwn") => Ok(Kind::Container),
        _ => Err(Failure::Usage(format!(
            "`{}` ends neither in `.gguf` (for any llama.cpp) nor in `.dwn` (compressed container)",
            output.display()
        ))),
    }
}

fn refuse_factors(plan: &Plan) -> Result<(), Failure> {
    let names = plan.not_stock();
    if names.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = names.iter().take(3).map(|n| format!("`{n}`")).collect();
    Err(Failure::Usage(format!(
        "a `.gguf` file can't hold the factors of {} tensors ({}{}); write a `.dwn` container, \
         and `dwindle export` it where a dense `.gguf` is needed, or change the recipe",
        names.len(),
        shown.join(", "),
        if names.len() > 3 { ", …" } else { "" }
    )))
}

fn refuse_overwriting_source(
    source: &std::path::Path,
    output: &std::path::Path,
) -> Result<(), Failure> {
    match (fs::canonicalize(source), fs::canonicalize(output)) {
        (Ok(a), Ok(b)) if a == b => Err(Failure::Usage(format!(
            "`{}` is the checkpoint itself; choose another output",
            output.display()
        ))),
        _ => Ok(()),
    }
}

/// Fallbacks that differ only in the tensor's name are told once.
fn report_fallbacks(plan: &Plan) {
    let mut groups: Vec<(&plan::Fallback, usize)> = Vec::new();
    for fallback in &plan.fallbacks {
        let same = |other: &plan::Fallback| {
            (&other.wanted, &other.done, &other.reason)
                == (&fallback.wanted, &fallback.done, &fallback.reason)
                && role(&other.tensor).1 == role(&fallback.tensor).1
        };
        match groups.iter_mut().find(|(first, _)| same(first)) {
            Some(group) => group.1 += 1,
            None => groups.push((fallback, 1)),
        }
    }
    for (f, count) in groups {
        let others = match count {
            1 => String::new(),
            n => format!(" and {} more of its role", n - 1),
        };
        eprintln!(
            "note: `{}`{others}: {} became {}, because {}",
            f.tensor, f.wanted, f.done, f.reason
        );
    }
}

/// Zeros are easily taken for speed.
fn report_zeros(plan: &Plan, kind: Option<Kind>) {
    let has_zeros = |step: &&plan::Step| step.stored.parameters.contains_key("zeros");
    let count = plan.steps.iter().filter(has_zeros).count();
    if count > 0 {
        let bytes = match kind {
            Some(Kind::Stock) => "take as many bytes in a `.gguf` as other weights",
            _ => "are stored as a bitmap",
        };
        eprintln!("note: the zeros in {count} tensors {bytes}; llama.cpp gets no faster by them");
    }
}

fn print_plan(plan: &Plan, as_json: bool) -> Result<(), Failure> {
    if as_json {
        #[derive(Serialize)]
        struct Report<'a> {
            tensors: Vec<StoredTensor>,
            bytes: u64,
            fallbacks: &'a [plan::Fallback],
        }
        return json(&Report {
            tensors: plan.stored().tensors,
            bytes: plan.bytes(),
            fallbacks: &plan.fallbacks,
        });
    }
    let total = plan.bytes();
    let rows = plan.steps.iter().map(|step| {
        let s = &step.stored;
        let bytes: u64 = s.parts.iter().map(|p| p.bytes()).sum();
        [
            s.name.clone(),
            shape(&s.shape),
            s.ty.to_string(),
            s.method.clone(),
            types(s),
            shape(&ranks(s)),
            bytes.to_string(),
        ]
    });
    line(
        table(
            [
                "tensor", ">shape", "source", "method", "type", ">rank", ">bytes",
            ],
            rows,
        )
        .to_string(),
    )?;
    line(format!(
        "{} tensors, {total} bytes ({}) before compression",
        plan.steps.len(),
        size(total)
    ))
}

fn print_summary(
    plan: &Plan,
    model: &Model,
    structure: Option<&structure::Report>,
    summary: &Summary,
    args: &Args,
) -> Result<(), Failure> {
    let parameters: u64 = model
        .tensors
        .iter()
        .map(|t| t.shape.iter().product::<u64>())
        .sum();
    let bpw = summary.bytes as f64 * 8.0 / parameters as f64;
    if args.json {
        #[derive(Serialize)]
        struct Report<'a> {
            #[serde(flatten)]
            summary: &'a Summary,
            parameters: u64,
            bits_per_weight: f64,
            peak_memory: Option<u64>,
            fallbacks: &'a [plan::Fallback],
            structure: Option<&'a structure::Report>,
        }
        return json(&Report {
            structure,
            peak_memory: peak_memory(),
            summary,
            parameters,
            bits_per_weight: bpw,
            fallbacks: &plan.fallbacks,
        });
    }
    let mut groups: Vec<([String; 3], usize, f32, u64)> = Vec::new();
    for t in &summary.tensors {
        let Some(step) = plan.steps.iter().find(|s| s.stored.name == t.name) else {
            continue;
        };
        let key = [
            role(&t.name).1.to_string(),
            step.stored.method.clone(),
            types(&step.stored),
        ];
        let error = t.relative_error;
        match groups.iter_mut().find(|g| g.0 == key) {
            Some(g) => {
                g.1 += 1;
                g.2 = g.2.max(error);
                g.3 += t.bytes;
            }
            None => groups.push((key, 1, error, t.bytes)),
        }
    }
    let rows = groups
        .into_iter()
        .map(|([role, method, ty], n, error, bytes)| {
            [
                role,
                n.to_string(),
                method,
                ty,
                format!("{error:.5}"),
                size(bytes),
            ]
        });
    line(
        table(
            [
                "role",
                ">tensors",
                "method",
                "type",
                ">largest error",
                ">size",
            ],
            rows,
        )
        .to_string(),
    )?;
    line(format!(
        "{} bytes ({}), {bpw:.3} bits per weight",
        summary.bytes,
        size(summary.bytes)
    ))
}
