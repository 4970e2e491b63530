//! Options that set a size or a quality as the target.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use dwindle_formats::gguf::TensorType;

use super::Failure;
use super::output::{above_zero, parse_bytes};
use crate::workbench::{Choosing, Effort, Goal, Text};

/// The requested size or quality.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Write the best file of at most this size, in bytes (`90MB`, `2GiB`) or in percent of the
    /// checkpoint's weights (`35%`). Picks a type per tensor from measured sensitivity, then rounds
    /// to minimise each layer's output error. Measures the model first, once; writes a stock `.gguf`
    #[arg(long, value_name = "SIZE", value_parser = file_size, group = "target")]
    pub size: Option<FileSize>,
    /// Like --size, in bits per weight, metadata excluded
    #[arg(long, value_name = "BITS", value_parser = above_zero, group = "target")]
    pub bpw: Option<f64>,
    /// Write the smallest file whose mean KL divergence from the checkpoint is at most this,
    /// measured on the first 8 chunks of --text
    #[arg(long, value_name = "KLD", value_parser = above_zero, group = "target")]
    pub max_kld: Option<f64>,
}

/// How types are chosen.
#[derive(Debug, Clone, Args)]
pub struct ChoosingArgs {
    /// How thoroughly to measure the model
    #[arg(long, value_enum, default_value = "normal")]
    effort: EffortArg,
    /// Types to choose from [default: all k-, i- and legacy quants and F16; those below 2 bits only
    /// for sizes below 3 bits per weight]
    #[arg(long, value_name = "TYPES", value_delimiter = ',', value_parser = element_type)]
    types: Vec<TensorType>,
    /// Folder for what is measured of models, so that the next size is quicker [default: `dwindle` in the
    /// user's cache folder]
    #[arg(long, value_name = "DIR")]
    pub workspace: Option<PathBuf>,
    /// A second text, unlike the others, UTF-8. Files are measured on it too; `compress` warns if
    /// its file is worse there than the largest of llama-quantize's file types of at most its size
    #[arg(long, value_name = "FILE")]
    pub gate: Option<PathBuf>,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EffortArg {
    /// Layers fitted to 16 chunks of the text, types judged on 8, an eighth of the blocks at a time
    Fast,
    /// On 64 chunks, one block at a time
    Normal,
    /// On 128 chunks; refines the choice by making and measuring up to 32 more files, on 32 chunks
    Best,
}

/// A size of a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FileSize {
    /// Bytes.
    Bytes(u64),
    /// A fraction of the checkpoint's weights.
    Part(f64),
}

/// What a size looks like.
const SIZES: &str =
    "expected bytes such as `90MB`, or a percentage above 0 and at most 100, such as `35%`";

pub fn file_size(text: &str) -> Result<FileSize, String> {
    let Some(percent) = text.strip_suffix('%') else {
        return match text.parse::<f64>() {
            Ok(n) if n > 0.0 && n <= 100.0 => {
                let percent = if n < 1.0 { 100.0 * n } else { n };
                Err(format!(
                    "{text} bytes hold no model; did you mean `{percent}%`?"
                ))
            }
            _ => parse_bytes(text)
                .map(FileSize::Bytes)
                .map_err(|_| SIZES.into()),
        };
    };
    match percent.trim().parse::<f64>() {
        Ok(p) if p > 0.0 && p <= 100.0 => Ok(FileSize::Part(p / 100.0)),
        _ => Err(SIZES.into()),
    }
}

fn element_type(text: &str) -> Result<TensorType, String> {
    let ty = text.parse::<TensorType>().map_err(|e| e.to_string())?;
    if crate::ggml::writable(ty) {
        Ok(ty)
    } else {
        Err("it can't be written".into())
    }
}

impl Target {
    /// The goal, if there is one.
    pub fn goal(&self) -> Option<Goal> {
        let size = self.size.map(|size| match size {
            FileSize::Bytes(bytes) => Goal::Bytes(bytes),
            FileSize::Part(part) => Goal::Part(part),
        });
        let bits = self.bpw.map(Goal::Bits);
        size.or(bits).or(self.max_kld.map(Goal::Divergence))
    }
}

impl Target {
    /// The target in a file's name.
    pub fn label(&self) -> Option<String> {
        let size = self.size.map(|size| match size {
            FileSize::Bytes(bytes) => format!("{bytes}-bytes"),
            FileSize::Part(part) => format!("{}-percent", 100.0 * part),
        });
        let bits = self.bpw.map(|bits| format!("{bits}bpw"));
        size.or(bits)
            .or(self.max_kld.map(|kld| format!("kld-{kld}")))
    }
}

impl ChoosingArgs {
    /// The first of these options that was given.
    pub fn given(&self) -> Option<&'static str> {
        let given = [
            (!self.types.is_empty(), "--types"),
            (self.gate.is_some(), "--gate"),
            (self.effort != EffortArg::Normal, "--effort"),
        ];
        given.into_iter().find(|(is, _)| *is).map(|(_, name)| name)
    }

    /// As options of the library.
    pub fn choosing(&self) -> Choosing {
        Choosing {
            effort: match self.effort {
                EffortArg::Fast => Effort::Fast,
                EffortArg::Normal => Effort::Normal,
                EffortArg::Best => Effort::Best,
            },
            types: self.types.clone(),
            chunks: None,
        }
    }

    /// The second text.
    pub fn gate(&self) -> Result<Option<Text>, Failure> {
        Ok(self.gate.as_deref().map(Text::read).transpose()?)
    }
}

impl FileSize {
    /// The size in bytes for a checkpoint whose weights take `whole` bytes.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            FileSize::Bytes(bytes) => bytes,
            FileSize::Part(part) => (part * whole as f64) as u64,
        }
    }
}
