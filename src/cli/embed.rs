//! `dwindle embed`: turns texts into vectors.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::Serialize;

use super::Failure;
use super::model::Runtime;
use super::output::{json, line, read_text, table};
use crate::eval::cosine;
use crate::llama::embedding::{Pooling, embed};

/// Embed texts: turn each into a vector of length 1
///
/// Prints a line for each text, its numbers divided by spaces. Runs encoders (BERT and its kin), and
/// language models that were trained to embed.
#[derive(Debug, Parser)]
pub struct Args {
    /// A `.gguf`, a `.dwn` or a checkpoint
    file: PathBuf,
    /// A text to embed; may be repeated
    #[arg(
        short,
        long,
        allow_hyphen_values = true,
        required_unless_present = "text"
    )]
    prompt: Vec<String>,
    /// Embed each line of this file that is not empty
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// What is made of a text's tokens [default: what the file says, else mean]
    #[arg(long, value_name = "HOW")]
    pooling: Option<How>,
    /// Print a table of the texts' cosines instead
    #[arg(long, conflicts_with = "json")]
    cosines: bool,
    #[command(flatten)]
    runtime: Runtime,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum How {
    Mean,
    Cls,
    Last,
}

#[derive(Serialize)]
struct Report {
    file: String,
    dimensions: usize,
    /// Tokens of each text.
    tokens: Vec<usize>,
    embeddings: Vec<Vec<f32>>,
}

/// Runs `dwindle embed`.
pub fn main(args: &Args) -> Result<(), Failure> {
    let mut texts = args.prompt.clone();
    if let Some(file) = &args.text {
        let words = read_text(file)?;
        let lines = words.lines().filter(|line| !line.trim().is_empty());
        texts.extend(lines.map(String::from));
    }
    let model = args.runtime.load(&args.file)?;
    let tokens = texts.iter().map(|text| model.tokenize(text, true, false));
    let tokens = tokens.collect::<Result<Vec<_>, _>>()?;
    let pooling = args.pooling.map(|how| match how {
        How::Mean => Pooling::Mean,
        How::Cls => Pooling::Cls,
        How::Last => Pooling::Last,
    });
    let embeddings = embed(&model, &tokens, pooling, args.runtime.threads())?;
    if args.json {
        return json(&Report {
            file: args.file.display().to_string(),
            dimensions: model.n_embd_out(),
            tokens: tokens.iter().map(Vec::len).collect(),
            embeddings,
        });
    }
    if args.cosines {
        return cosines(&texts, &embeddings);
    }
    embeddings.iter().try_for_each(|row| {
        let numbers: Vec<String> = row.iter().map(f32::to_string).collect();
        line(numbers.join(" "))
    })
}

/// A row for each two texts.
fn cosines(texts: &[String], embeddings: &[Vec<f32>]) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for (i, one) in embeddings.iter().enumerate() {
        for (j, other) in embeddings.iter().enumerate().skip(i + 1) {
            let found = format!("{:.4}", cosine(one, other));
            rows.push([found, shown(&texts[i]), shown(&texts[j])]);
        }
    }
    line(table([">cosine", "text", "and"], rows).to_string())
}

/// The beginning of a text.
fn shown(text: &str) -> String {
    const MOST: usize = 40;
    let start: String = text.chars().take(MOST).collect();
    match text.chars().count() > MOST {
        true => format!("{start}…"),
        false => start,
    }
}
