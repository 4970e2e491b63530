//! `dwindle calibrate`: measures the inputs of linear layers.

use std::path::{Path, PathBuf};

use clap::Parser;
use dwindle_formats::output::{Claims, Kind};
use serde::Serialize;

use super::model::Runtime;
use super::output::{checkpoint_path, json, line, parse_bytes, read_text, size, table};
use super::{Failure, progress};
use crate::eval::peak_memory;
use crate::measure::{
    CalibrateOptions, Calibration, CalibrationText, MAX_GRAM_WIDTH, Outputs, calibrate,
};
use crate::runtime::identity;
use crate::statistics::Group;

/// Measure the input of each linear layer, for methods that fit weights to their inputs
///
/// Runs the model over a text. Writes for the input of each linear layer (and of each expert) the
/// Gram matrix XᵀX / tokens, its diagonal, the mean and the token count. Cuts the text into chunks
/// as llama-imatrix does. The Gram matrix of an input of 4096 elements takes 64 MiB, of 16384
/// elements 1 GiB; of wider inputs only blocks on the diagonal are stored.
#[derive(Debug, Parser)]
pub struct Args {
    /// A checkpoint, a `.gguf` or a `.dwn`
    checkpoint: PathBuf,
    /// The text to run the model over, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Statistics to write, a safetensors file
    #[arg(short, long, value_name = "FILE", required_unless_present = "imatrix")]
    output: Option<PathBuf>,
    /// Importance weights to write, the GGUF file of llama-imatrix
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// With --imatrix: the output layer too
    #[arg(long, requires = "imatrix")]
    process_output: bool,
    /// Evaluate only this many tokens of the text, rounded up to whole chunks
    #[arg(long, value_name = "N", conflicts_with = "chunks")]
    tokens: Option<u64>,
    /// Evaluate only the first chunks of the text
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// Tokens of a chunk
    #[arg(short, long, default_value_t = 512)]
    ctx: u32,
    /// Memory for sums. If they don't fit, the model runs several times, each time for some of the
    /// layers. This does not limit the whole process: the model and llama.cpp's buffers come on
    /// top, and an input whose sums need more is measured alone
    #[arg(long, default_value = "4G", value_parser = parse_bytes, value_name = "BYTES")]
    memory: u64,
    /// The widest input whose whole Gram matrix is kept
    #[arg(long, default_value_t = MAX_GRAM_WIDTH, value_name = "N")]
    max_gram_width: usize,
    #[command(flatten)]
    runtime: Runtime,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    calibration: &'a Calibration,
    peak_memory: Option<u64>,
}

pub fn main(args: &Args) -> Result<(), Failure> {
    claim(args)?;
    let text = read_text(&args.text)?;
    let chunks = chunks(args)?;
    let options = CalibrateOptions {
        ctx: args.ctx,
        chunks,
        memory: args.memory,
        threads: args.runtime.threads(),
        max_gram_width: args.max_gram_width,
    };
    let outputs = Outputs {
        statistics: args.output.as_deref(),
        imatrix: args.imatrix.as_deref(),
        output_layer: args.process_output,
    };
    let identity = identity(&args.checkpoint)?;
    let model = args.runtime.load(&args.checkpoint)?;
    let bar = progress::share("calibrating");
    let calibration = calibrate(
        &model,
        identity,
        CalibrationText {
            words: &text,
            name: &file_name(&args.text),
        },
        &options,
        outputs,
        &mut |p| {
            bar.set_length(p.total);
            bar.set_position(p.done);
            if p.passes > 1 {
                bar.set_message(format!("pass {} of {}", p.pass, p.passes));
            }
        },
    )?;
    bar.finish_and_clear();
    note(chunks, &calibration);
    if args.json {
        return json(&Report {
            calibration: &calibration,
            peak_memory: peak_memory(),
        });
    }
    print(args, &calibration)
}

/// Holds the outputs against the inputs, before measurements that may take hours.
fn claim(args: &Args) -> Result<(), Failure> {
    Claims::new()
        .reads("the checkpoint", [checkpoint_path(&args.checkpoint)])
        .reads("the text", [&args.text])
        .reads("an adapter", args.runtime.adapters())
        .writes(&args.output)
        .writes(&args.imatrix)
        .check()?;
    let statistics = args.output.iter().map(|p| (Kind::Safetensors, p));
    let imatrix = args.imatrix.iter().map(|p| (Kind::Gguf, p));
    Ok(statistics
        .chain(imatrix)
        .try_for_each(|(kind, path)| kind.check(path))?)
}

/// Chunks of the text, where not all of it is wanted.
fn chunks(args: &Args) -> Result<Option<usize>, Failure> {
    Ok(match (args.chunks, args.tokens) {
        (Some(0), _) | (_, Some(0)) => {
            return Err(Failure::Usage(
                "there is nothing to measure on no tokens".into(),
            ));
        }
        (None, Some(tokens)) => Some(tokens.div_ceil(args.ctx.max(1).into()) as usize),
        (chunks, _) => chunks,
    })
}

/// Says on stderr what was wanted and is not there.
fn note(chunks: Option<usize>, calibration: &Calibration) {
    if let Some(wanted) = chunks
        && calibration.provenance.chunks < wanted as u64
    {
        eprintln!(
            "note: the text has only {} of the {wanted} chunks",
            calibration.provenance.chunks
        );
    }
    if let Some((weight, _)) = calibration.unreached.first() {
        eprintln!(
            "note: no token reached {} of the experts, the first of them in `{weight}`; try a \
             longer text",
            calibration.unreached.len()
        );
    }
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

/// Bytes of a group's Gram matrices.
fn gram_bytes(group: &Group) -> u64 {
    let block = |b: &std::ops::Range<usize>| (b.len() * b.len() * 4) as u64;
    group.slices as u64 * group.blocks.iter().map(block).sum::<u64>()
}

/// Groups that differ only in their layer are told once: with the names of their readers, how many
/// there are, and their bytes.
fn alike<'a>(args: &Args, calibration: &'a Calibration) -> Vec<(String, &'a Group, usize, u64)> {
    let mut rows: Vec<(String, &Group, usize, u64)> = Vec::new();
    for group in &calibration.groups {
        let roles: Vec<&str> = group
            .weights
            .iter()
            .map(|w| crate::architecture::role(w).1)
            .collect();
        let roles = roles.join(", ");
        let bytes = if args.output.is_some() {
            gram_bytes(group)
        } else {
            0
        };
        let same = |r: &&mut (String, &Group, usize, u64)| {
            (&r.0, r.1.width, r.1.slices, &r.1.blocks)
                == (&roles, group.width, group.slices, &group.blocks)
        };
        match rows.iter_mut().find(same) {
            Some(row) => {
                row.2 += 1;
                row.3 += bytes;
            }
            None => rows.push((roles, group, 1, bytes)),
        }
    }
    rows
}

fn print(args: &Args, calibration: &Calibration) -> Result<(), Failure> {
    let rows = alike(args, calibration);
    let rows = rows.into_iter().map(|(roles, group, count, bytes)| {
        let blocks = match group.blocks.len() {
            1 => String::new(),
            n => format!(" in {n} blocks"),
        };
        [
            roles,
            count.to_string(),
            format!("{}{blocks}", group.width),
            group.slices.to_string(),
            size(bytes),
        ]
    });
    line(
        table(
            ["read by", ">inputs", ">width", ">slices", ">Gram matrices"],
            rows,
        )
        .to_string(),
    )?;
    let p = &calibration.provenance;
    let passes = match calibration.passes {
        1 => String::new(),
        n => format!(", {n} passes"),
    };
    line(format!(
        "{} tokens in {} chunks of {}{passes}",
        p.tokens, p.chunks, p.ctx
    ))?;
    if let Some(path) = &args.output {
        line(format!("{}: {}", path.display(), size(calibration.bytes)))?;
    }
    if let Some(path) = &args.imatrix {
        line(format!("{}: importance weights", path.display()))?;
    }
    Ok(())
}
