//! What executing factors saves: a random Llama, dense and factored, side by side.
//!
//! ```text
//! cargo bench --bench factors
//! ```
//!
//! The ideal is the ratio of operations for a prompt, and of bytes for generated text. Speeds are
//! medians of alternated runs in one process; memory is that of a process that has only loaded the
//! file.

#[path = "../synthetic/mod.rs"]
mod checkpoints;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use checkpoints::Sizes;
use clap::Parser;
use dwindle::eval::{Speed, SpeedOptions, speed};
use dwindle::llama::device::weights::{Contraction, Link, Operand, Weights};
use dwindle::llama::feed::TensorFeed;
use dwindle::llama::model::{Model, ModelOptions};
use dwindle::mapped::Mapping;
use dwindle::runtime::{Factors, StockModel, load};
use dwindle_formats::container::Container;

#[derive(Parser)]
struct Args {
    /// The rank of the factors
    #[arg(long, default_value_t = 512)]
    rank: u64,
    /// Runs of each
    #[arg(long, default_value_t = 7)]
    runs: u32,
    /// Tokens of the prompt, and to generate
    #[arg(long, default_value_t = 256)]
    prompt: u32,
    #[arg(long, default_value_t = 64)]
    predict: u32,
    /// Types to measure
    #[arg(long, value_delimiter = ',', default_value = "f16,q8_0,q4_0")]
    types: Vec<String>,
    /// Only load this file, and print how much memory the process has then and had at most
    #[arg(long, hide = true)]
    load: Option<PathBuf>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SIZES: Sizes = Sizes {
    hidden: 2048,
    ffn: 5632,
    heads: 32,
    kv_heads: 16,
    layers: 8,
};

/// Rows and columns of the matrices of a layer.
fn matrices() -> [[u64; 2]; 7] {
    let (d, f, kv) = (
        SIZES.hidden,
        SIZES.ffn,
        SIZES.hidden / SIZES.heads * SIZES.kv_heads,
    );
    [[d, d], [kv, d], [kv, d], [d, d], [f, d], [f, d], [d, f]]
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(file) = &args.load {
        // llama.cpp itself is there before.
        dwindle::llama::backend::devices();
        let before = status("VmRSS:")?;
        let model = open(file)?;
        let (now, most) = (status("VmRSS:")?, status("VmHWM:")?);
        println!("{} {} {}", now - before, most - before, model.size() >> 10);
        return Ok(());
    }
    let folder = tempfile::tempdir_in("target")?;
    let checkpoint = folder.path().join("checkpoint");
    checkpoints::write(&checkpoint, &SIZES)?;
    println!(
        "a Llama of {} layers, {} wide, feed-forward {}, factors of rank {}",
        SIZES.layers, SIZES.hidden, SIZES.ffn, args.rank
    );
    println!(
        "{:<6} {:>8} {:>8} {:>9} {:>10} {:>8} {:>9}",
        "type", "prompt", "ideal", "of ideal", "generate", "ideal", "of ideal"
    );
    for ty in &args.types {
        types(&args, folder.path(), &checkpoint, ty)?;
    }
    Ok(())
}

fn types(args: &Args, folder: &Path, checkpoint: &Path, ty: &str) -> Result<()> {
    let plain = format!("type = \"{ty}\"\n");
    let rule = format!(
        "{plain}[[rule]]\nroles = [\"attn_q\", \"attn_k\", \"attn_v\", \"attn_output\", \"ffn_gate\", \
         \"ffn_up\", \"ffn_down\"]\nmethod = \"svd\"\nrank = {}\ntype = \"{ty}\"\n",
        args.rank
    );
    let dense = compress(folder, checkpoint, &plain, &format!("{ty}.gguf"))?;
    let factored = compress(folder, checkpoint, &rule, &format!("{ty}.dwn"))?;
    let wrapped = compress(folder, checkpoint, &plain, &format!("{ty}-dense.dwn"))?;
    let models = [open(&dense)?, open(&factored)?, through_device(&wrapped)?];
    // As llama-bench does: a prompt alone, and a text from its beginning.
    let measure = |prompt, generate| {
        let options = SpeedOptions {
            prompt,
            generate,
            runs: args.runs,
            threads: None,
        };
        speed(&models.iter().collect::<Vec<_>>(), &options)
    };
    let mut speeds = measure(args.prompt, 1)?;
    for (speed, text) in speeds.iter_mut().zip(measure(1, args.predict)?) {
        speed.generated_per_second = text.generated_per_second;
    }
    let [stock, executed, dense_through] = &speeds[..] else {
        return Err("three models were measured".into());
    };
    drop(models);
    print(args, ty, stock, executed, dense_through);
    for file in [&dense, &factored] {
        let child = Command::new(std::env::current_exe()?)
            .arg("--load")
            .arg(file)
            .output()?;
        let text = String::from_utf8(child.stdout)?;
        let kib: Vec<f64> = text
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect();
        let [now, most, weights] = kib[..] else {
            return Err(format!("{} was not loaded", file.display()).into());
        };
        println!(
            "       {}: the process grows by {:.0} MiB, {:.0} MiB at most while loading, {:.3} and {:.3} \
             of its weights' {:.0} MiB",
            file.extension().unwrap_or_default().to_string_lossy(),
            now / 1024.0,
            most / 1024.0,
            now / weights,
            most / weights,
            weights / 1024.0,
        );
    }
    Ok(())
}

fn print(args: &Args, ty: &str, stock: &Speed, executed: &Speed, through: &Speed) {
    let prompt = executed.prompt_per_second / stock.prompt_per_second;
    let generate = executed.generated_per_second / stock.generated_per_second;
    let (mut dense, mut factored) = (0, 0);
    for [m, n] in matrices() {
        dense += m * n;
        factored += args.rank * (m + n);
    }
    let operations = dense as f64 / factored as f64;
    let bytes = stock.model_bytes as f64 / executed.model_bytes as f64;
    println!(
        "{ty:<6} {prompt:>7.2}x {operations:>7.2}x {:>9.2} {generate:>9.2}x {bytes:>7.2}x {:>9.2}",
        prompt / operations,
        generate / bytes
    );
    println!(
        "       {:.0} and {:.0} prompt tokens/s, {:.1} and {:.1} generated; a dense model through the \
         device: {:.3} and {:.3} of stock",
        stock.prompt_per_second,
        executed.prompt_per_second,
        stock.generated_per_second,
        executed.generated_per_second,
        through.prompt_per_second / stock.prompt_per_second,
        through.generated_per_second / stock.generated_per_second,
    );
}

fn compress(folder: &Path, checkpoint: &Path, recipe: &str, name: &str) -> Result<PathBuf> {
    let (file, rules) = (folder.join(name), folder.join("recipe.toml"));
    std::fs::write(&rules, recipe)?;
    let status = Command::new(env!("CARGO_BIN_EXE_dwindle"))
        .arg("compress")
        .arg(checkpoint)
        .arg("--recipe")
        .arg(&rules)
        .arg("-o")
        .arg(&file)
        .stdout(std::process::Stdio::null())
        .status()?;
    if status.success() {
        Ok(file)
    } else {
        Err(format!("compressing to {name} failed").into())
    }
}

fn open(file: &Path) -> Result<Model> {
    let options = ModelOptions::default();
    Ok(load(file, &options, Factors::Executed, &mut |_, _| ())?)
}

/// A container without factors on the device that executes factors.
fn through_device(file: &Path) -> Result<Model> {
    let bytes = Arc::new(Mapping::open(file)?);
    let container = Arc::new(Container::read(&bytes)?);
    let stock = StockModel::from_container(&container, &bytes);
    let produce = Box::new(|index: usize, out: &mut Vec<u8>| {
        *out = stock.tensor(index)?;
        Ok(())
    });
    let feed = TensorFeed::new(&stock.metadata, stock.tensors.clone(), produce)?;
    // Quantized matrices are operands too, as beside factors.
    let mut weights = Weights::default();
    let mut origins = Vec::new();
    for (i, t) in stock.tensors.iter().enumerate() {
        if t.ty.is_quantized() && t.name != "token_embd.weight" {
            let links = vec![Link::Matrix(origins.len())];
            let contraction = Contraction {
                branches: vec![links],
                rows: None,
            };
            origins.push(i);
            weights.contractions.insert(t.name.clone(), contraction);
            weights.operands.push(Operand {
                name: t.name.clone(),
                ty: t.ty,
                shape: t.shape.clone(),
            });
        }
    }
    let (container, bytes) = (container.clone(), bytes.clone());
    let fetch = Box::new(move |operand: usize| {
        let part = container.parts_of(origins[operand]).start;
        Ok(container.decode(&bytes, part)?)
    });
    let options = ModelOptions::default();
    let name = file.display().to_string();
    Ok(Model::load_contracted(
        &name, feed, weights, fetch, &options,
    )?)
}

/// A number of /proc/self/status, in KiB.
fn status(key: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let number = line.and_then(|l| l.split_whitespace().next());
    Ok(number.ok_or("no such line")?.parse()?)
}
