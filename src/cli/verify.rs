//! `dwindle verify`: checks a file's checksums, and its distance from the checkpoint.

use std::path::{Path, PathBuf};

use clap::Parser;
use dwindle_formats::container::{Container, ContainerError, verify};
use dwindle_formats::gguf::{GgufError, parts};
use serde::Serialize;

use super::output::{json, line, size, table};
use super::{Failure, progress};
use crate::checkpoint::gguf::Gguf;
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

/// One file of an output.
struct Part {
    path: PathBuf,
    bytes: Mapping,
    container: Container,
}

fn one(args: &Args, file: &Path) -> Result<(), Failure> {
    let parts = open(file)?;
    let mut report = Report {
        file: file.display().to_string(),
        bytes: parts.iter().map(|p| p.bytes.len() as u64).sum(),
        damage: Vec::new(),
        differences: None,
    };
    let bar = progress::bytes(report.bytes, "verifying");
    for part in &parts {
        let release = |range| part.bytes.release(range);
        let found = verify(&part.container, &part.bytes, |n| bar.inc(n), release);
        report
            .damage
            .extend(found.iter().map(|e| match parts.len() {
                1 => e.to_string(),
                _ => format!("`{}`: {e}", part.path.display()),
            }));
    }
    bar.finish_and_clear();
    if !report.damage.is_empty() {
        return failed(args, &report);
    }
    if let Some(checkpoint) = &args.against {
        report.differences = Some(against(&parts, checkpoint)?);
    }
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
    let tensors: usize = parts.iter().map(|p| p.container.plan.tensors.len()).sum();
    let files = match parts.len() {
        1 => String::new(),
        n => format!(", {n} files"),
    };
    line(format!(
        "{}: all checksums hold, {} in {tensors} tensors{files}",
        report.file,
        size(report.bytes),
    ))
}

/// Opens a file, or all parts of the model that it is a part of.
fn open(file: &Path) -> Result<Vec<Part>, Failure> {
    let paths = parts(file);
    if paths.len() > 1 {
        // They are there, and belong together.
        Gguf::open(file).map_err(crate::architecture::Error::from)?;
    }
    let part = |path: &PathBuf| {
        let bytes = Mapping::open(path)?;
        let read = match paths.len() {
            1 => Container::read(&bytes),
            _ => Container::read_part(&bytes),
        };
        let container = read.map_err(|e| unreadable(path, e))?;
        Ok(Part {
            path: path.clone(),
            bytes,
            container,
        })
    };
    paths.iter().map(part).collect()
}

/// A file that can't be read as what it claims to be fails the check; a file of another program has nothing to
/// check.
fn unreadable(path: &Path, error: ContainerError) -> Failure {
    match error {
        ContainerError::Foreign => Failure::file(
            path,
            "the file has no checksums: another program wrote it; `dwindle compress` it with \
             `--preset source` to add them",
        ),
        ContainerError::Gguf(e @ GgufError::Split { .. }) => Failure::file(path, e),
        e => Failure::Check(format!("`{}`: {e}", path.display())),
    }
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

fn against(parts: &[Part], checkpoint: &Path) -> Result<Vec<TensorDifference>, Failure> {
    let (source, model) = crate::architecture::open(checkpoint)?;
    let subject = Subject::unmeasured(&model, source.as_ref());
    let tensors: usize = parts.iter().map(|p| p.container.plan.tensors.len()).sum();
    let bar = progress::count(tensors as u64, "comparing");
    let mut differences = Vec::new();
    for part in parts {
        let seen = &|| bar.inc(1);
        differences.extend(compare(&part.container, &part.bytes, &subject, seen)?);
    }
    bar.finish_and_clear();
    Ok(differences)
}
