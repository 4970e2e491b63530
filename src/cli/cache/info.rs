//! `dwindle cache info`: says what a state or a packed file holds.

use std::path::PathBuf;

use clap::Parser;
use dwindle_formats::packed::{MAGIC, Packed, PackedError};
use dwindle_formats::state::{Form, Section, State, Stream, read, tokens};
use serde::Serialize;

use super::super::Failure;
use super::super::output::{json, line, size, table};
use super::blame;
use crate::kv::KvError;
use crate::mapped::Mapping;

/// Say what a saved prompt, packed or not, holds, and check its checksums
#[derive(Debug, Parser)]
pub struct Args {
    /// A state that llama.cpp saved, or a packed one
    file: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    form: &'static str,
    version: Option<u32>,
    architecture: Option<String>,
    tokens: Option<usize>,
    bytes: usize,
    sections: Vec<SectionReport>,
    packed_by: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct SectionReport {
    holds: &'static str,
    cells: usize,
    streams: usize,
    layers: usize,
    key_type: String,
    value_type: String,
    key_width: u32,
    value_width: u32,
    rotated: bool,
    v_trans: bool,
    bytes: usize,
}

pub fn main(args: &Args) -> Result<(), Failure> {
    let bytes = Mapping::open(&args.file)?;
    let damaged = |e: PackedError| blame(&args.file, KvError::from(e));
    let (state, packed_by) = match bytes.starts_with(&MAGIC) {
        true => {
            let packed = Packed::read(&bytes).map_err(damaged)?;
            for record in &packed.records {
                packed.payload(record).map_err(damaged)?;
            }
            let settings = serde_json::from_slice(packed.settings).ok();
            (packed.state, settings)
        }
        false => (
            read(&bytes).map_err(|e| blame(&args.file, KvError::from(e)))?,
            None,
        ),
    };
    let report = report(&state, bytes.len(), packed_by);
    match args.json {
        true => json(&report),
        false => print(&report),
    }
}

fn report(state: &State, bytes: usize, packed_by: Option<serde_json::Value>) -> Report {
    let (form, version, architecture) = match &state.form {
        Form::Sequence { version } => ("sequence", Some(*version), None),
        Form::Session {
            version,
            architecture,
        } => ("session", Some(*version), Some(architecture.clone())),
        Form::Bytes { .. } => ("bytes of a sequence", None, None),
    };
    Report {
        form,
        version,
        architecture,
        tokens: tokens(&state.tokens).map(<[i32]>::len),
        bytes,
        sections: state.sections.iter().map(section).collect(),
        packed_by,
    }
}

fn section(section: &Section) -> SectionReport {
    let attention = match section {
        Section::Attention(attention) => attention,
        Section::Recurrent { range, positions } => {
            return SectionReport {
                holds: "recurrent layers",
                cells: positions.len(),
                streams: 0,
                layers: 0,
                key_type: String::new(),
                value_type: String::new(),
                key_width: 0,
                value_width: 0,
                rotated: false,
                v_trans: false,
                bytes: range.len(),
            };
        }
    };
    let cells = attention.streams.iter().map(|s| s.positions.len()).sum();
    let rows = attention.streams.iter().find_map(|s| s.rows.as_ref());
    let (key, value) = (
        rows.and_then(|r| r.keys.first()),
        rows.and_then(|r| r.values.first()),
    );
    let bytes_of = |stream: &Stream| {
        let parts = stream
            .rows
            .iter()
            .flat_map(|r| r.keys.iter().chain(&r.values));
        let bytes = parts.map(|p| p.row_bytes().saturating_mul(stream.positions.len()));
        bytes.fold(0, usize::saturating_add)
    };
    let name = |part: Option<&dwindle_formats::state::Part>| {
        part.map_or(String::new(), |p| p.ty.name().to_ascii_lowercase())
    };
    SectionReport {
        holds: "attention",
        cells,
        streams: attention.streams.len(),
        layers: rows.map_or(0, |r| r.keys.len()),
        key_type: name(key),
        value_type: name(value),
        key_width: key.map_or(0, |p| p.width),
        value_width: value.map_or(0, |p| p.width),
        rotated: rows.is_some_and(|r| r.key_turn > 0),
        v_trans: rows.is_some_and(|r| r.is_transposed),
        bytes: attention
            .streams
            .iter()
            .map(bytes_of)
            .fold(0, usize::saturating_add),
    }
}

fn print(report: &Report) -> Result<(), Failure> {
    let version = report
        .version
        .map_or(String::new(), |v| format!(", version {v}"));
    let architecture = report
        .architecture
        .iter()
        .map(|a| format!(", {a}"))
        .collect::<String>();
    let tokens = report
        .tokens
        .map_or("unknown".to_string(), |n| n.to_string());
    line(format!(
        "{}{version}{architecture}: {tokens} tokens, {}",
        report.form,
        size(report.bytes as u64)
    ))?;
    let rows = report.sections.iter().map(|s| {
        [
            s.holds.to_string(),
            s.cells.to_string(),
            s.layers.to_string(),
            format!("{} × {}", s.key_type, s.key_width),
            format!("{} × {}", s.value_type, s.value_width),
            if s.rotated {
                "yes".into()
            } else {
                String::new()
            },
            if s.v_trans {
                "by element".into()
            } else {
                String::new()
            },
            size(s.bytes as u64),
        ]
    });
    let columns = [
        "section",
        ">tokens",
        ">layers",
        "keys",
        "values",
        "rotated",
        "values stored",
        ">unpacked",
    ];
    line(table(columns, rows).to_string())?;
    if let Some(settings) = &report.packed_by {
        line(format!("packed: {settings}"))?;
    }
    Ok(())
}
