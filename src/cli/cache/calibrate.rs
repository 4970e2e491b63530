//! `dwindle cache calibrate`: makes a codebook.

use std::path::PathBuf;

use clap::Parser;
use dwindle_formats::output::{Claims, Kind};
use serde::Serialize;

use super::super::model::Runtime;
use super::super::output::{checkpoint_path, json, line, read_text, size, table};
use super::super::{Failure, progress};
use crate::cache::{CodebookOptions, Stage, calibrate};
use crate::kv::codebook::{Codebook, Origin, Trial};
use crate::runtime::identity;

/// Make a codebook: learn in which directions a model's keys and values vary, and what errors cost
///
/// Takes a few minutes for a small model. One codebook serves all prompts of a model.
#[derive(Debug, Parser)]
pub struct Args {
    /// A `.gguf`, a `.dwn` or a checkpoint
    model: PathBuf,
    /// The text to learn from, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// The codebook to write, a safetensors file
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Tokens of a window of the text
    #[arg(long, value_name = "N", default_value_t = CodebookOptions::default().window)]
    window: usize,
    /// Windows to learn from
    #[arg(long, value_name = "N", default_value_t = CodebookOptions::default().windows)]
    windows: usize,
    /// Windows at the end of the text on which steps are tried
    #[arg(long, value_name = "N", default_value_t = CodebookOptions::default().trials)]
    trials: usize,
    /// The most elements of neighbouring layers that are coded together
    #[arg(long, value_name = "N", default_value_t = CodebookOptions::default().group)]
    group: usize,
    /// The most bytes of the codebook's components and metrics, in per cent of the model in F16
    #[arg(long, value_name = "PERCENT", default_value_t = 7.0)]
    percent: f64,
    #[command(flatten)]
    runtime: Runtime,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    codebook: String,
    bytes: u64,
    tokens: u64,
    groups: usize,
    components: usize,
    trials: &'a [Trial],
}

pub fn main(args: &Args) -> Result<(), Failure> {
    Claims::new()
        .reads("the model", [checkpoint_path(&args.model)])
        .reads("the text", [&args.text])
        .writes([&args.output])
        .check()?;
    Kind::Safetensors.check(&args.output)?;
    let text = read_text(&args.text)?;
    let identity = identity(&args.model)?;
    let model = args.runtime.load(&args.model)?;
    let origin = Origin {
        model: identity.norms_sha256.clone(),
        architecture: identity.architecture.clone(),
        text: super::super::output::file_name(&args.text),
        tokens: 0,
    };
    let options = CodebookOptions {
        window: args.window,
        windows: args.windows,
        trials: args.trials,
        group: args.group,
        part: args.percent / 100.0,
        threads: args.runtime.threads(),
        ..CodebookOptions::default()
    };
    let bar = progress::share("calibrating");
    let codebook = calibrate(
        (&args.model, &model),
        (&text, origin),
        &options,
        &mut |stage, done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
            bar.set_message(name(stage));
        },
    )?;
    bar.finish_and_clear();
    let bytes = codebook.write(&args.output)?;
    report(args, &codebook, bytes)
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Reading => "reading",
        Stage::Layers => "what layers' errors cost",
        Stage::Components => "components",
        Stage::Steps => "trying steps",
    }
}

fn report(args: &Args, codebook: &Codebook, bytes: u64) -> Result<(), Failure> {
    let components = codebook.groups.iter().map(|g| g.deviations.len()).sum();
    if args.json {
        return json(&Report {
            codebook: codebook.digest(),
            bytes,
            tokens: codebook.origin.tokens,
            groups: codebook.groups.len(),
            components,
            trials: &codebook.trials,
        });
    }
    let rows = codebook.trials.iter().map(|t| {
        [
            format!("{:.2}", t.ratio),
            format!("{:.5}", t.kld),
            format!("{:.5}", t.step),
        ]
    });
    line(table([">ratio", ">mean KLD", ">step"], rows).to_string())?;
    line(format!(
        "{}: {}, {components} components of {} groups, from {} tokens",
        args.output.display(),
        size(bytes),
        codebook.groups.len(),
        codebook.origin.tokens
    ))
}
