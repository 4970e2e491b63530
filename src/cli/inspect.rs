//! `dwindle inspect`: lists a model's tensors.

use std::path::{Path, PathBuf};

use clap::Parser;
use dwindle_formats::container::{Container, is_container};
use dwindle_formats::gguf::{Metadata, TensorType, parts, read_header};
use serde::Serialize;

use super::Failure;
use super::output::{json, line, ranks, shape, size, table, types};
use crate::architecture::ModelTensor;
use crate::checkpoint::gguf::Gguf;
use crate::checkpoint::{Source as _, SourceFile, SourceTensor};
use crate::mapped::Mapping;

/// List a model's tensors: method, type, shape, rank, bytes, bits per weight
#[derive(Debug, Parser)]
pub struct Args {
    /// A `.dwn` container, any `.gguf` file, or a checkpoint
    #[arg(value_name = "FILE|CHECKPOINT")]
    file: PathBuf,
    /// Also list the model's metadata
    #[arg(long)]
    metadata: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    name: String,
    shape: Vec<u64>,
    method: String,
    source_type: Option<String>,
    ty: String,
    ranks: Vec<u64>,
    codec: String,
    bytes: u64,
    bits_per_weight: f64,
    share: f64,
    relative_error: Option<f32>,
}

#[derive(Serialize)]
struct Report {
    file: String,
    architecture: Option<String>,
    kind: &'static str,
    bytes: u64,
    tensor_bytes: u64,
    parameters: u64,
    bits_per_weight: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Vec<(String, String)>>,
    tensors: Vec<Row>,
}

/// What there is to tell of a model.
struct Found {
    kind: &'static str,
    bytes: u64,
    metadata: Metadata,
    rows: Vec<Row>,
}

pub fn main(args: &Args) -> Result<(), Failure> {
    let is_model = |e: &std::ffi::OsStr| e == "gguf" || e == "dwn";
    let mut found = match args.file.is_file() || args.file.extension().is_some_and(is_model) {
        true => in_file(&args.file)?,
        false => in_checkpoint(&args.file)?,
    };
    let tensor_bytes = found.rows.iter().map(|r| r.bytes).sum::<u64>();
    let parameters = found.rows.iter().map(|r| r.shape.iter().product::<u64>());
    let parameters = parameters.sum();
    for row in &mut found.rows {
        row.share = row.bytes as f64 / tensor_bytes.max(1) as f64;
    }
    let architecture = found.metadata.get("general.architecture");
    let report = Report {
        file: args.file.display().to_string(),
        architecture: architecture.and_then(|v| v.as_str()).map(String::from),
        kind: found.kind,
        bytes: found.bytes,
        tensor_bytes,
        parameters,
        bits_per_weight: bits(tensor_bytes, parameters),
        metadata: args.metadata.then(|| metadata(&found.metadata)),
        tensors: found.rows,
    };
    if args.json {
        return json(&report);
    }
    print(&report)
}

/// All parts of a split model.
fn in_parts(file: &Path) -> Result<Found, Failure> {
    let whole = Gguf::open(file).map_err(crate::architecture::Error::from)?;
    let row = |t: &SourceTensor| {
        let bytes = t.ty.bytes(&t.shape).unwrap_or(0);
        raw_row(&t.name, &t.shape, t.ty, bytes)
    };
    Ok(Found {
        kind: "GGUF in several files",
        bytes: whole.files().iter().map(SourceFile::bytes).sum(),
        metadata: whole.metadata().clone(),
        rows: whole.tensors().iter().map(row).collect(),
    })
}

fn in_file(file: &Path) -> Result<Found, Failure> {
    if parts(file).len() > 1 {
        return in_parts(file);
    }
    let bytes = Mapping::open(file)?;
    let header = read_header(&bytes).map_err(|e| Failure::file(file, e))?;
    let (kind, rows) = if is_container(&header) {
        let container = Container::read(&bytes).map_err(|e| Failure::file(file, e))?;
        let kind = match container.is_stock() {
            true => "GGUF with checksums",
            false => "compressed container",
        };
        (kind, container_rows(&container))
    } else {
        let tensors = header.tensors.iter();
        let rows = tensors.map(|t| raw_row(&t.name, &t.shape, t.ty, t.bytes()));
        ("GGUF without checksums", rows.collect())
    };
    Ok(Found {
        kind,
        bytes: bytes.len() as u64,
        metadata: header.metadata,
        rows,
    })
}

/// The tensors that a GGUF of a checkpoint has, in the types of their source.
fn in_checkpoint(checkpoint: &Path) -> Result<Found, Failure> {
    let (source, model) = crate::architecture::open(checkpoint)?;
    let row = |t: &ModelTensor| {
        let ty = t.source_type(source.as_ref());
        raw_row(&t.name, &t.shape, ty, ty.bytes(&t.shape).unwrap_or(0))
    };
    let rows: Vec<Row> = model.tensors.iter().map(row).collect();
    Ok(Found {
        kind: "checkpoint",
        bytes: rows.iter().map(|r| r.bytes).sum(),
        metadata: model.metadata,
        rows,
    })
}

fn bits(bytes: u64, parameters: u64) -> f64 {
    bytes as f64 * 8.0 / parameters.max(1) as f64
}

fn container_rows(container: &Container) -> Vec<Row> {
    let mut rows = Vec::new();
    let tensors = container.plan.tensors.iter().zip(&container.errors);
    for (index, (tensor, error)) in tensors.enumerate() {
        let mut bytes = 0;
        let mut codecs = Vec::new();
        for part in container.parts_of(index) {
            bytes += container.stored_bytes(part);
            codecs.extend(container.codecs(part));
        }
        codecs.sort_unstable();
        codecs.dedup();
        let codecs: Vec<&str> = codecs.into_iter().map(|c| c.name()).collect();
        rows.push(Row {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            method: tensor.method.clone(),
            source_type: Some(tensor.ty.to_string()),
            ty: types(tensor),
            ranks: ranks(tensor),
            codec: codecs.join("+"),
            bytes,
            bits_per_weight: bits(bytes, tensor.shape.iter().product()),
            share: 0.0,
            relative_error: Some(*error).filter(|e| e.is_finite()),
        });
    }
    rows
}

fn raw_row(name: &str, shape: &[u64], ty: TensorType, bytes: u64) -> Row {
    Row {
        name: name.to_string(),
        shape: shape.to_vec(),
        method: String::new(),
        source_type: None,
        ty: ty.to_string(),
        ranks: Vec::new(),
        codec: "raw".into(),
        bytes,
        bits_per_weight: ty.bits(),
        share: 0.0,
        relative_error: None,
    }
}

/// Characters of a value that are shown.
const LONGEST: usize = 100;

fn metadata(metadata: &Metadata) -> Vec<(String, String)> {
    metadata
        .iter()
        .filter(|(key, _)| !key.starts_with("dwindle."))
        .map(|(key, value)| {
            let mut text = value.shown(LONGEST);
            if text.chars().count() > LONGEST {
                text = text.chars().take(LONGEST).chain(['…']).collect();
            }
            (key.to_string(), text)
        })
        .collect()
}

fn print(report: &Report) -> Result<(), Failure> {
    if let Some(metadata) = &report.metadata {
        let rows = metadata.iter().cloned().map(|(key, value)| [key, value]);
        line(table(["key", "value"], rows).to_string())?;
    }
    let rows = report.tensors.iter().map(|r| {
        let or_empty = |text: Option<String>| text.unwrap_or_default();
        [
            r.name.clone(),
            r.method.clone(),
            or_empty(r.source_type.clone()),
            r.ty.clone(),
            shape(&r.shape),
            shape(&r.ranks),
            r.codec.clone(),
            r.bytes.to_string(),
            format!("{:.2}", r.bits_per_weight),
            format!("{:.1} %", r.share * 100.0),
            or_empty(r.relative_error.map(|e| format!("{e:.5}"))),
        ]
    });
    line(
        table(
            [
                "tensor", "method", "source", "type", ">shape", ">rank", "codec", ">bytes",
                ">bits", ">share", ">error",
            ],
            rows,
        )
        .to_string(),
    )?;
    line(format!(
        "{} ({}): {} parameters in {} tensors, {} bytes ({}), {:.3} bits per weight",
        report.architecture.as_deref().unwrap_or("no architecture"),
        report.kind,
        report.parameters,
        report.tensors.len(),
        report.bytes,
        size(report.bytes),
        report.bits_per_weight
    ))
}
