//! The fixture model, compressed in several ways, and one table of what each way costs.

use std::path::Path;
use std::process::Command;

use crate::shell::{json, number, output, root, run};

const MODEL: &str = "fixtures/kjv-llama";
const TEXT: &str = "fixtures/kjv-heldout.txt";
const CHUNKS: &str = "40";

/// Preset and extension of each file of the table.
const FILES: [(&str, &str); 6] = [
    ("source", "gguf"),
    ("source", "dwn"),
    ("q8_0", "gguf"),
    ("q4_k_m", "gguf"),
    ("q2_k", "gguf"),
    ("k-proj", "dwn"),
];

pub fn main() -> Result<(), String> {
    let folder = root().join("target/demo");
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut rows = Vec::new();
    for (preset, extension) in FILES {
        let file = folder.join(format!("{preset}.{extension}"));
        rows.push(measure(preset, &file)?);
    }
    eprintln!();
    run(dwindle()
        .args(["run"])
        .arg(folder.join("k-proj.dwn"))
        .args([
            "--prompt",
            "And it came to pass",
            "--predict",
            "48",
            "--temp",
            "0.7",
        ]))?;
    print(&rows);
    Ok(())
}

struct Row {
    name: String,
    bytes: u64,
    bits: f64,
    perplexity: f64,
    divergence: f64,
    same_top: f64,
    prompt: f64,
    generation: f64,
}

fn dwindle() -> Command {
    Command::new(root().join("target/release/dwindle"))
}

fn measure(preset: &str, file: &Path) -> Result<Row, String> {
    let compressed = json(
        dwindle()
            .args(["compress", MODEL, "--json", "--preset", preset, "--output"])
            .arg(file),
    )?;
    output(dwindle().arg("verify").arg(file))?;
    let evaluated = json(dwindle().arg("eval").arg(file).args([
        "--text",
        TEXT,
        "--reference",
        MODEL,
        "--chunks",
        CHUNKS,
        "--json",
    ]))?;
    let speed = json(
        dwindle()
            .arg("bench")
            .arg(file)
            .args(["--runs", "3", "--json"]),
    )?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Ok(Row {
        name: name.into_owned(),
        bytes: number(&compressed, "/bytes")? as u64,
        bits: number(&compressed, "/bits_per_weight")?,
        perplexity: number(&evaluated, "/perplexity/perplexity/value")?,
        // Equal predictions differ by rounding, below and above zero.
        divergence: number(&evaluated, "/divergence/kld/value")?.max(0.0),
        same_top: number(&evaluated, "/divergence/same_top/value")?,
        prompt: number(&speed, "/file/prompt_per_second")?,
        generation: number(&speed, "/file/generated_per_second")?,
    })
}

fn print(rows: &[Row]) {
    println!(
        "\n{MODEL} against itself in bf16, {CHUNKS} chunks of 512 tokens of {TEXT}; \
         speeds in tokens per second\n"
    );
    println!(
        "{:<12} {:>9} {:>6} {:>11} {:>9} {:>9} {:>9} {:>11}",
        "file", "bytes", "bits", "perplexity", "mean KLD", "same top", "prompt", "generation"
    );
    for r in rows {
        println!(
            "{:<12} {:>9} {:>6.2} {:>11.4} {:>9.5} {:>7.2} % {:>9.0} {:>11.0}",
            r.name,
            r.bytes,
            r.bits,
            r.perplexity,
            r.divergence,
            r.same_top * 100.0,
            r.prompt,
            r.generation
        );
    }
}
