//! `dwindle diagnose`: ranks tensors by what compressing them costs.

use std::path::{Path, PathBuf};

use clap::Parser;
use dwindle_formats::output::{Claims, Kind, folder_of};

use super::model::Runtime;
use super::output::{
    at_least_one, checkpoint_path, file_name, json, line, read_text, shape, table, warn_of_norms,
};
use super::{Failure, progress};
use crate::architecture;
use crate::checkpoint::{self, Caches};
use crate::eval::EvalOptions;
use crate::measure::{Experiment, activations, divergences, tensors};
use crate::plan::Subject;
use crate::statistics::{
    Diagnosis, DiagnosisText, Identity, InputDiagnosis, Measured, Statistics, TensorDiagnosis,
    digest,
};

/// Rank tensors by how much compressing them costs
///
/// Shows for each linear layer how its output's energy spreads over ranks, and how much of it each
/// method loses at --keep. With --text it runs the model once per tensor, with only that tensor
/// replaced by its svd at --keep, and measures the KL divergence; then once with all tensors
/// replaced, beside the original, to compare the layers' inputs. The costliest tensors come first.
#[derive(Debug, Parser)]
pub struct Args {
    /// Hugging Face folder, name in the Hugging Face cache, or GGUF file
    checkpoint: PathBuf,
    /// Statistics of `dwindle calibrate`
    #[arg(long, value_name = "FILE")]
    stats: PathBuf,
    /// Run the model over this text, UTF-8
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The kept fraction of parameters at which methods are compared
    #[arg(long, default_value_t = 0.5, value_parser = keep)]
    keep: f64,
    /// Chunks of the text to run over
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = at_least_one)]
    chunks: usize,
    /// Tokens of a chunk
    #[arg(short, long, default_value_t = 512)]
    ctx: u32,
    /// Write the diagnosis, JSON, for `dwindle compress --diagnosis`
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Tensors to show
    #[arg(long, default_value_t = 20, value_name = "N")]
    top: usize,
    #[command(flatten)]
    runtime: Runtime,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

fn keep(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(keep) if keep > 0.0 && keep < 1.0 => Ok(keep),
        _ => Err("expected a fraction between 0 and 1".into()),
    }
}

pub fn main(args: &Args) -> Result<(), Failure> {
    claim(args)?;
    let text = args.text.as_deref().map(read_text).transpose()?;
    let path = checkpoint::resolve(&args.checkpoint, &Caches::from_env())
        .map_err(architecture::Error::from)?;
    let (source, model) = architecture::open(&path)?;
    let statistics = Statistics::open(&args.stats)?;
    warn_of_norms(statistics.check_model(&model, source.as_ref())?);
    let mut diagnosis = Diagnosis::new(Identity::of(&model, source.as_ref())?, args.keep);

    let bar = progress::count(statistics.weights() as u64, "decomposing");
    let subject = Subject {
        model: &model,
        source: source.as_ref(),
        measured: Measured {
            statistics: Some(&statistics),
            ..Measured::default()
        },
    };
    diagnosis.tensors = tensors(&subject, &statistics, args.keep, &|| bar.inc(1))?;
    bar.finish_and_clear();
    sort_by_output_error(&mut diagnosis.tensors);
    if let (Some(text), Some(file)) = (&text, &args.text) {
        run(args, &path, subject, (text, file), &mut diagnosis)?;
    }
    if let Some(output) = &args.output {
        diagnosis.write(output)?;
    }
    if args.json {
        return json(&diagnosis);
    }
    print(&diagnosis, args.top)
}

/// Holds the output against the inputs, before measurements that may take hours.
fn claim(args: &Args) -> Result<(), Failure> {
    Claims::new()
        .reads("the checkpoint", [checkpoint_path(&args.checkpoint)])
        .reads("the statistics", [&args.stats])
        .reads("the text", &args.text)
        .reads("an adapter", args.runtime.adapters())
        .writes(&args.output)
        .check()?;
    Ok(args
        .output
        .iter()
        .try_for_each(|path| Kind::Json.check(path))?)
}

/// Runs the model, once for each tensor and once for all.
fn run(
    args: &Args,
    path: &Path,
    subject: Subject<'_>,
    (text, file): (&str, &Path),
    diagnosis: &mut Diagnosis,
) -> Result<(), Failure> {
    let scratch = match &args.output {
        Some(output) => folder_of(output).to_path_buf(),
        None => std::env::temp_dir(),
    };
    let options = EvalOptions {
        ctx: args.ctx,
        chunks: Some(args.chunks),
        threads: args.runtime.threads(),
        ..EvalOptions::default()
    };
    let running = args.runtime.load_replaceable(path)?;
    let found = &mut diagnosis.tensors;
    let bar = progress::count(found.len() as u64, "running");
    let mut experiment = Experiment::new(&running, subject, (text, &options), &scratch);
    let keep = args.keep;
    let chunks = divergences(&subject, &mut experiment, keep, found, &mut || bar.inc(1))?;
    drop(experiment);
    bar.finish_and_clear();
    let original = args.runtime.load(path)?;
    diagnosis.inputs = activations(
        &subject,
        [&original, &running],
        args.keep,
        (text, &options),
        found,
    )?;
    diagnosis.text = Some(DiagnosisText {
        name: file_name(file),
        sha256: digest(text.as_bytes()),
        ctx: args.ctx,
        chunks,
    });
    if chunks < args.chunks {
        eprintln!(
            "note: the text has only {chunks} of the {} chunks",
            args.chunks
        );
    }
    Ok(())
}

fn sort_by_output_error(tensors: &mut [TensorDiagnosis]) {
    let error = |t: &TensorDiagnosis| t.output_errors.get("svd").copied().unwrap_or(0.0);
    tensors.sort_by(|a, b| error(b).total_cmp(&error(a)));
}

fn print(diagnosis: &Diagnosis, top: usize) -> Result<(), Failure> {
    let percent = |v: f64| format!("{:.1}", v * 100.0);
    let rows = diagnosis.tensors.iter().take(top).map(|t| {
        let error = |method: &str| {
            t.output_errors
                .get(method)
                .map_or("-".into(), |e| percent(*e))
        };
        let [quarter, half, most] = t.energy.map(percent);
        [
            t.name.clone(),
            shape(&t.shape),
            format!("{:.0}", t.effective_rank),
            quarter,
            half,
            most,
            error("svd"),
            error("tensor-train"),
            error("magnitude"),
            error("wanda"),
            error("sparsegpt"),
            t.kld.map_or("-".into(), |kld| format!("{kld:.4}")),
        ]
    });
    let columns = [
        "tensor",
        ">shape",
        ">eff. rank",
        ">at .25",
        ">at .5",
        ">at .75",
        ">svd",
        ">train",
        ">magnitude",
        ">wanda",
        ">sparsegpt",
        ">KLD",
    ];
    line(table(columns, rows).to_string())?;
    let shown = diagnosis.tensors.len().min(top);
    line(format!(
        "{shown} of {} tensors. Energy of the output that factors keep at each keep, and output \
         energy that each method loses at keep {}, in percent.",
        diagnosis.tensors.len(),
        diagnosis.keep
    ))?;
    if diagnosis.text.is_none() {
        return line(
            "Without --text: sorted by the output energy that svd loses, which says little about \
             the model's loss.",
        );
    }
    line(untouchable(&diagnosis.tensors))?;
    line("")?;
    line(inputs_table(&diagnosis.inputs))?;
    line(format!(
        "All tensors compressed by svd at keep {}: the layers' inputs, compared with the original.",
        diagnosis.keep
    ))
}

/// The fewest tensors that carry half of all divergence.
fn untouchable(tensors: &[TensorDiagnosis]) -> String {
    let kld = |t: &TensorDiagnosis| t.kld.unwrap_or(0.0);
    let total: f64 = tensors.iter().map(kld).sum();
    let mut sum = 0.0;
    let half: Vec<&str> = tensors
        .iter()
        .take_while(|t| {
            let is_needed = sum < total / 2.0;
            sum += kld(t);
            is_needed
        })
        .map(|t| t.name.as_str())
        .collect();
    format!(
        "Don't touch the first {}: they carry half of the {total:.4} that all tensors cost one by one.",
        half.len()
    )
}

fn inputs_table(inputs: &[InputDiagnosis]) -> String {
    let rows = inputs.iter().map(|input| {
        let names: Vec<&str> = input
            .weights
            .iter()
            .map(|w| w.trim_end_matches(".weight"))
            .collect();
        [
            names.join(", "),
            format!("{:.4}", input.cosine),
            format!("{:.3}", input.norm_ratio),
        ]
    });
    table(["input of", ">cosine", ">norm ratio"], rows).to_string()
}
