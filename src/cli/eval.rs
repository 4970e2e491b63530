//! `dwindle eval`: measures perplexity and divergence from a reference.

use std::path::{Path, PathBuf};

use clap::Parser;
use dwindle_formats::output::Claims;
use fs_err as fs;
use indicatif::ProgressBar;
use serde::Serialize;

use super::model::Runtime;
use super::output::{at_least_one, checkpoint_path, json, line, read_text, size, table};
use super::{Failure, progress};
use crate::checkpoint::{self, Caches};
use crate::eval::{
    Cosines, Divergence, EvalOptions, Evaluation, Perplexity, Progress, Reference, cache_key,
    cache_matches, compare, compare_embeddings, perplexity, write_reference,
};

/// Measure perplexity, and the divergence from a reference
///
/// Follows llama-perplexity: cuts the text into chunks of --ctx tokens and scores the second half
/// of each. Of a model that embeds texts, compares the embeddings of the text's lines with the
/// reference's.
#[derive(Debug, Parser)]
pub struct Args {
    /// A `.gguf`, a `.dwn` or a checkpoint
    file: PathBuf,
    /// The text to predict, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Compare with this `.gguf`, `.dwn` or checkpoint
    #[arg(long, value_name = "FILE|CHECKPOINT")]
    reference: Option<PathBuf>,
    /// Store the reference's predictions in this file, and reuse them if it exists
    #[arg(long, value_name = "FILE", requires = "reference")]
    cache: Option<PathBuf>,
    /// Tokens of context
    #[arg(short, long, default_value_t = 512)]
    ctx: u32,
    /// Evaluate only the first chunks of the text
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    chunks: Option<usize>,
    #[command(flatten)]
    runtime: Runtime,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    file: String,
    bytes: u64,
    reference_bytes: Option<u64>,
    #[serde(flatten)]
    found: Found,
}

/// What was measured.
#[derive(Serialize)]
#[serde(untagged)]
enum Found {
    Predictions(Box<Evaluation>),
    Embeddings(Cosines),
}

impl From<Evaluation> for Found {
    fn from(found: Evaluation) -> Found {
        Found::Predictions(Box::new(found))
    }
}

pub fn main(args: &Args) -> Result<(), Failure> {
    let reference = args.reference.as_deref().map(checkpoint_path);
    Claims::new()
        .reads("the model", [checkpoint_path(&args.file)])
        .reads("the reference", reference)
        .reads("the text", [&args.text])
        .reads("an adapter", args.runtime.adapters())
        .writes(&args.cache)
        .check()?;
    let text = read_text(&args.text)?;
    let options = EvalOptions {
        ctx: args.ctx,
        chunks: args.chunks,
        threads: args.runtime.threads(),
        ..EvalOptions::default()
    };
    let found = found(args, &text, &options)?;
    let report = Report {
        file: args.file.display().to_string(),
        bytes: bytes_of(&args.file)?,
        reference_bytes: args.reference.as_deref().map(bytes_of).transpose()?,
        found,
    };
    if args.json {
        return json(&report);
    }
    print(&report)
}

fn found(args: &Args, text: &str, options: &EvalOptions) -> Result<Found, Failure> {
    if let (Some(path), Some(cache)) = (&args.reference, &args.cache) {
        return cached(args, (path, cache), text, options).map(Found::from);
    }
    let model = args.runtime.load(&args.file)?;
    let Some(path) = &args.reference else {
        let found = watched("evaluating", |p| perplexity(&model, text, options, p));
        return found.map(Found::from);
    };
    let reference = args.runtime.load(path)?;
    if model.embeds() {
        let cosines = compare_embeddings(&model, &reference, text, options)?;
        return Ok(Found::Embeddings(cosines));
    }
    let reference = Reference::Model(&reference);
    let found = watched("comparing", |p| {
        compare(&model, &reference, text, options, p)
    });
    found.map(Found::from)
}

/// Compares with predictions in a file, which is written first where it is not there. Only one of both models
/// is loaded at a time.
fn cached(
    args: &Args,
    (path, cache): (&Path, &Path),
    text: &str,
    options: &EvalOptions,
) -> Result<Evaluation, Failure> {
    let identity = checkpoint::resolve(path, &Caches::from_env())
        .map_err(crate::architecture::Error::from)
        .map(|path| checkpoint::fingerprint::files(&path))??;
    let key = cache_key(&identity, text, options);
    if !cache_matches(cache, key) {
        let reference = args.runtime.load(path)?;
        watched("reference", |p| {
            write_reference(&reference, text, options, cache, key, p)
        })?;
    }
    let model = args.runtime.load(&args.file)?;
    let reference = Reference::Cache(cache, key);
    watched("comparing", |p| {
        compare(&model, &reference, text, options, p)
    })
}

/// Runs an evaluation under a progress bar.
fn watched<E: Into<Failure>>(
    what: &'static str,
    run: impl FnOnce(&mut dyn FnMut(Progress)) -> Result<Evaluation, E>,
) -> Result<Evaluation, Failure> {
    let bar = progress::count(0, what);
    let shown: ProgressBar = bar.clone();
    let result = run(&mut |p| {
        shown.set_length(p.chunks as u64);
        shown.set_position(p.done as u64);
        shown.set_message(match p.kld {
            Some(kld) => format!("PPL {:.3} KLD {kld:.4}", p.perplexity),
            None => format!("PPL {:.3}", p.perplexity),
        });
    });
    bar.finish_and_clear();
    result.map_err(Into::into)
}

/// Bytes of a file, or of a checkpoint's weights.
fn bytes_of(path: &Path) -> Result<u64, Failure> {
    let path =
        checkpoint::resolve(path, &Caches::from_env()).map_err(crate::architecture::Error::from)?;
    if !path.is_dir() {
        return Ok(fs::metadata(path)?.len());
    }
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            bytes += fs::metadata(path)?.len();
        }
    }
    Ok(bytes)
}

fn print(report: &Report) -> Result<(), Failure> {
    let mut rows = vec![["size".to_string(), size(report.bytes)]];
    if let Some(bytes) = report.reference_bytes {
        let share = report.bytes as f64 / bytes.max(1) as f64 * 100.0;
        rows.push(["of the reference's size".into(), format!("{share:.1} %")]);
    }
    match &report.found {
        Found::Predictions(found) => {
            perplexity_rows(&mut rows, &found.perplexity);
            if let Some(divergence) = &found.divergence {
                divergence_rows(&mut rows, divergence);
            }
        }
        Found::Embeddings(found) => {
            let Cosines { cosine, least, .. } = found;
            let mean = format!("{:.6} ± {:.6}", cosine.value, cosine.error);
            rows.push(["mean cosine".into(), mean]);
            rows.push(["smallest cosine".into(), format!("{least:.6}")]);
            let counted = format!("{} of {} tokens", found.texts, found.tokens);
            rows.push(["texts embedded".into(), counted]);
        }
    }
    line(table(["measure", ">value"], rows).to_string())
}

fn perplexity_rows(rows: &mut Vec<[String; 2]>, p: &Perplexity) {
    rows.push([
        "perplexity".into(),
        format!("{:.4} ± {:.4}", p.perplexity.value, p.perplexity.error),
    ]);
    rows.push([
        "tokens scored".into(),
        format!("{} in {} chunks of {}", p.scored, p.chunks, p.ctx),
    ]);
}

fn divergence_rows(rows: &mut Vec<[String; 2]>, d: &Divergence) {
    let percent = |v: f64| v * 100.0;
    let mut row = |name: &str, value: String| rows.push([name.to_string(), value]);
    row(
        "reference perplexity",
        format!(
            "{:.4} ± {:.4}",
            d.reference_perplexity.value, d.reference_perplexity.error
        ),
    );
    row(
        "perplexity ratio",
        format!(
            "{:.5} ± {:.5}",
            d.perplexity_ratio.value, d.perplexity_ratio.error
        ),
    );
    row(
        "mean KL divergence",
        format!("{:.6} ± {:.6}", d.kld.value, d.kld.error),
    );
    row("median KL divergence", format!("{:.6}", d.kld_median));
    row("99 % KL divergence", format!("{:.6}", d.kld_99));
    row("99.9 % KL divergence", format!("{:.6}", d.kld_99_9));
    row("largest KL divergence", format!("{:.6}", d.kld_max));
    row(
        "same top token",
        format!(
            "{:.2} ± {:.2} %",
            percent(d.same_top.value),
            percent(d.same_top.error)
        ),
    );
    row(
        "RMS change of probability",
        format!(
            "{:.3} ± {:.3} %",
            percent(d.rms_p_change.value),
            percent(d.rms_p_change.error)
        ),
    );
    if let Some(cosine) = d.logit_cosine {
        row("logit cosine", format!("{cosine:.6}"));
    }
}
