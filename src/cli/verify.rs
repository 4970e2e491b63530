//! `dwindle verify`: checks a file's checksums, and its distance from the checkpoint.

use std::path::{Path, PathBuf};

use clap::Parser;
use dwindle_formats::container::{Container, ContainerError, verify};
use dwindle_formats::gguf::{GgufError, refuse_split};
use serde::Serialize;

use super::output::{json, line, size, table};
use super::{Failure, progress};
use crate::mapped::Mapping;
use crate::measure::{TensorDifference, compare};
use crate::plan::Subject;

/// Check every checksum of files, and optionally their distance from the checkpoint
#[derive(Debug, Parser)]
pub struct Args {
    /// `.dwn` containers, or `.gguf` files that dwindle wrote
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Also decode every tensor and compare it with this checkpoint
    #[arg(long, value_name = "CHECKPOINT")]
    against: Option<PathBuf>,
    /// Print JSON instead of a table, one document for each file
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    file: String,
    bytes: u64,
    damage: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    differences: Option<Vec<TensorDifference>>,
}

pub fn main(args: &Args) -> Result<(), Failure> {
    // The files after one that is damaged are checked too.
    let mut failed = Vec::new();
    for file in &args.files {
        match one(args, file) {
            Err(Failure::Check(message)) => failed.push(message),
            other => other?,
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::Check(failed.join("\n"))),
    }
}

fn one(args: &Args, file: &Path) -> Result<(), Failure> {
    refuse_split(file).map_err(|e| Failure::file(file, e))?;
    let bytes = Mapping::open(file)?;
    let container = read(file, &bytes)?;
    let bar = progress::bytes(bytes.len() as u64, "verifying");
    let damage: Vec<String> = verify(
        &container,
        &bytes,
        |n| bar.inc(n),
        |range| bytes.release(range),
    )
    .iter()
    .map(ContainerError::to_string)
    .collect();
    bar.finish_and_clear();
    if !damage.is_empty() {
        let report = Report {
            file: file.display().to_string(),
            bytes: bytes.len() as u64,
            damage,
            differences: None,
        };
        return failed(args, &report);
    }
    let differences = match &args.against {
        None => None,
        Some(checkpoint) => Some(against(&container, &bytes, checkpoint)?),
    };
    let report = Report {
        file: file.display().to_string(),
        bytes: bytes.len() as u64,
        damage,
        differences,
    };
    if args.json {
        return json(&report);
    }
    if let Some(differences) = &report.differences {
        let rows = differences.iter().map(|d| {
            [
                d.name.clone(),
                d.method.clone(),
                format!("{:.6}", d.relative_error),
            ]
        });
        line(table(["tensor", "method", ">relative error"], rows).to_string())?;
    }
    line(format!(
        "{}: all checksums hold, {} in {} tensors",
        report.file,
        size(report.bytes),
        container.plan.tensors.len()
    ))
}

/// Reads a container. A file that can't be read as what it claims to be fails the check; a file of
/// another program has nothing to check.
fn read(path: &Path, bytes: &Mapping) -> Result<Container, Failure> {
    Container::read(bytes).map_err(|e| match e {
        ContainerError::Foreign => Failure::file(
            path,
            "the file has no checksums: another program wrote it; `dwindle compress` it with \
             `--preset source` to add them",
        ),
        ContainerError::Gguf(e @ GgufError::Split { .. }) => Failure::file(path, e),
        e => Failure::Check(format!("`{}`: {e}", path.display())),
    })
}

fn failed(args: &Args, report: &Report) -> Result<(), Failure> {
    if args.json {
        json(report)?;
    } else {
        for damage in &report.damage {
            line(damage)?;
        }
    }
    Err(Failure::Check(format!(
        "`{}`: damaged chunks: {}; get the file again",
        report.file,
        report.damage.len()
    )))
}

fn against(
    container: &Container,
    bytes: &Mapping,
    checkpoint: &Path,
) -> Result<Vec<TensorDifference>, Failure> {
    let (source, model) = crate::architecture::open(checkpoint)?;
    let bar = progress::count(container.plan.tensors.len() as u64, "comparing");
    let differences = compare(
        container,
        bytes,
        &Subject::unmeasured(&model, source.as_ref()),
        &|| bar.inc(1),
    )?;
    bar.finish_and_clear();
    Ok(differences)
}
