//! `dwindle compress`: converts a checkpoint into a smaller file.

use std::path::PathBuf;

use clap::Parser;
use dwindle_formats::bounded;
use dwindle_formats::output::Kind;

use super::Failure;
use super::devices::Devices;
use super::notes::{shrunk, warn_of_unfitted};
use super::output::{at_least_one, line, parse_bytes};
use super::progress::Terminal;
use super::report::{print_plan, print_summary};
use super::resources::Resources;
use super::target::{ChoosingArgs, Target};
use crate::fitting::FitOptions;
use crate::ggml::FILE_TYPES;
use crate::plan::{self, Base, PRESETS, Recipe, Rounding, Structure};
use crate::target::Part;
use crate::workbench::{Choosing, Compress, Compressed, is_stock};

/// Convert a checkpoint into a smaller file
#[derive(Debug, Parser)]
#[command(after_long_help = presets_help())]
pub struct Args {
    /// Hugging Face folder, name in the Hugging Face cache (`Qwen/Qwen3-0.6B`), or GGUF file
    checkpoint: PathBuf,
    /// Output: `.gguf` for any llama.cpp, `.dwn` for the compressed container; an existing file is
    /// replaced [default: a `.gguf` named after the checkpoint and what was asked for]
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Write a larger `.gguf` as parts of at most this size (`50GB`), named `-00001-of-00003.gguf` and so
    /// on, which llama.cpp loads together. A target counts the parts as one file
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    split_size: Option<u64>,
    /// LoRA adapter of PEFT, a folder, to merge into the checkpoint first
    #[arg(long, value_name = "DIR")]
    merge: Option<PathBuf>,
    /// Preset or llama-quantize's file type, listed under --help
    #[arg(
        long,
        conflicts_with_all = ["recipe", "target", "types_of"]
    )]
    preset: Option<String>,
    /// Recipe: TOML rules from roles, layers and names to methods
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    recipe: Option<PathBuf>,
    /// Give each tensor the type that it has in this GGUF file. With `--rounding output` the result
    /// has the same types and a smaller error
    #[arg(long, value_name = "GGUF", conflicts_with_all = ["recipe", "target"])]
    types_of: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    choosing: ChoosingArgs,
    /// Importance weights: statistics of `dwindle calibrate`, or the GGUF file of llama-imatrix
    #[arg(long, value_name = "FILE")]
    importance: Option<PathBuf>,
    /// Statistics of `dwindle calibrate`. With them `svd` fits the layers' outputs instead of their
    /// weights; `wanda` and `sparsegpt` need them; they also serve as importance weights
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Output of `dwindle diagnose`: `rank = "auto"` shares its budget by it
    #[arg(long, value_name = "FILE")]
    diagnosis: Option<PathBuf>,
    /// Prune feed-forward columns, least important first, until this fraction of the blocks'
    /// parameters remains; combines with any preset. The result is smaller and faster in any
    /// llama.cpp. Needs
    /// --stats, and for a Llama --diagnosis
    #[arg(long, value_name = "FRACTION", conflicts_with = "target")]
    keep: Option<f64>,
    /// How to round weights to quantized types: `nearest` rounds as ggml does, `output` minimises
    /// each layer's output error at the same types and bytes: by --stats, or else by what the rounded
    /// layers before it give on --text [default: what the recipe says, else nearest; with a target, output]
    #[arg(long, value_name = "HOW", value_parser = rounding)]
    rounding: Option<Rounding>,
    /// Fit each compressed layer, on a text, to the outputs of the compressed layers before it.
    /// Runs both models block by block. A target does so anyway
    #[arg(long, requires = "text")]
    sequential: bool,
    /// Text, UTF-8, that the model is measured on and its layers are fitted to [default: a
    /// mixed one that comes with dwindle]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Chunks of 512 tokens of the text that layers are fitted to [default: 64; with a target, what
    /// --effort says]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    chunks: Option<usize>,
    /// Measure this part of what is measured first (`2/8`), into --workspace, and stop. Machines share the
    /// work: run once for each part, then without this option
    #[arg(long, value_name = "I/N", conflicts_with_all = ["output", "dry_run", "split_size"])]
    part: Option<Part>,
    /// Print the plan with its bytes, metadata excluded, and stop; a target measures the model first
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    resources: Resources,
    #[command(flatten)]
    devices: Devices,
    /// Print JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// Parses how to round.
pub fn rounding(text: &str) -> Result<Rounding, String> {
    match text {
        "nearest" => Ok(Rounding::Nearest),
        "output" => Ok(Rounding::Output),
        _ => Err("expected `nearest` or `output`".into()),
    }
}

pub fn main(args: &Args) -> Result<(), Failure> {
    let output = args.output();
    let is_stock = match args.dry_run && args.output.is_none() {
        true => None,
        false => Some(is_stock(&output)?),
    };
    let recipe = args.recipe()?;
    args.check(&recipe, is_stock)?;
    // A name that the user did not choose must not cost a file that is no model.
    if args.output.is_none() && !args.dry_run && args.part.is_none() {
        Kind::Gguf.check(&output)?;
    }
    let resources = args.resources.options(false);
    let mut compress = Compress::checkpoint(&args.checkpoint)
        .merge(args.merge.clone())
        .recipe_file(args.recipe.clone())
        .types_of(args.types_of.clone())
        .statistics(args.stats.clone())
        .importance(args.importance.clone())
        .diagnosis(args.diagnosis.clone())
        .text(args.text.clone())
        .gate(args.choosing.gate.clone())
        .choosing(Choosing {
            chunks: args.chunks,
            ..args.choosing.choosing()
        })
        .workspaces(args.choosing.workspace.clone())
        .split_size(args.split_size)
        .sequential(args.sequential, args.fit_options())
        .memory(resources.memory)
        .threads(resources.threads)
        .placement(args.devices.placement()?);
    if let Some(goal) = args.target.goal() {
        compress = compress.goal(goal);
    }
    if args.target.goal().is_some() && (args.stats.is_some() || args.importance.is_some()) {
        eprintln!(
            "note: a target measures the model for itself; `--stats` and `--importance` are not used"
        );
    }
    let progress = Terminal::default();
    let compress = compress.recipe(recipe).progress(&progress);
    if let Some(part) = args.part {
        return line(compress.measure(part)?.display().to_string());
    }
    let done = if args.dry_run {
        compress.plan(is_stock.unwrap_or(args.split_size.is_some()))?
    } else {
        compress.write(&output)?
    };
    report(&done);
    match &done.summary {
        Some(summary) => print_summary(&done, summary, args.json),
        None => print_plan(&done, args.json),
    }
}

/// What the user should know beside the result.
fn report(done: &Compressed) {
    if let Some(structure) = &done.structure {
        eprintln!("note: {}", shrunk(structure));
        warn_of_unfitted(&structure.unfitted);
    }
    warn_of_unfitted(&done.unfitted);
    let Some(summary) = &done.summary else {
        return;
    };
    if summary.resumed_tensors > 0 {
        eprintln!(
            "note: {} tensors were already finished by an interrupted run",
            summary.resumed_tensors
        );
    }
    if summary.began_anew {
        eprintln!(
            "note: found an unfinished file of an interrupted run with another plan, checkpoint or version \
             of dwindle; it was not used"
        );
    }
}

impl Args {
    /// The file to write. Where none is named, it is called after the checkpoint and what was asked for.
    fn output(&self) -> PathBuf {
        let named = self.output.clone();
        named.unwrap_or_else(|| self.name().into())
    }

    fn name(&self) -> String {
        let stem = |path: &PathBuf| {
            let path = std::path::absolute(path).unwrap_or(path.clone());
            let name = match path.extension().is_some_and(|e| e == "gguf" || e == "toml") {
                true => path.file_stem(),
                false => path.file_name(),
            };
            name.map_or_else(String::new, |n| n.to_string_lossy().into_owned())
        };
        let asked = match (&self.preset, &self.recipe) {
            (Some(preset), _) => preset.clone(),
            (_, Some(recipe)) => stem(recipe),
            _ => self.target.label().unwrap_or_else(|| "types".into()),
        };
        format!("{}-{asked}.gguf", stem(&self.checkpoint))
    }

    /// Checks the options that clap can't compare.
    fn check(&self, recipe: &Recipe, is_stock: Option<bool>) -> Result<(), Failure> {
        let target = self.target.goal().is_some();
        let rounds = recipe.rounding == Rounding::Output && self.stats.is_none();
        let watches = recipe.structure.as_ref().is_some_and(Structure::needs_text);
        let wishes = [
            self.preset.is_some(),
            self.recipe.is_some(),
            self.types_of.is_some(),
            target,
        ];
        let wrong = match () {
            () if !wishes.contains(&true) => {
                "nothing says how small the file is to be; give a target (`--size 40%`, `--bpw`, `--max-kld`), \
                 a `--preset` such as `q4_k_m`, a `--recipe`, or `--types-of`"
            }
            () if target && is_stock == Some(false) => {
                "a target writes a stock file; name an output that ends in `.gguf`"
            }
            () if self.split_size.is_some() && is_stock == Some(false) => {
                "`--split-size` is for `.gguf` outputs; a container is one file"
            }
            () if recipe.structure.is_some() && recipe.rounding == Rounding::Output => {
                "`--rounding output` needs statistics of the smaller model's layers, and there are none yet; \
                 write the smaller model in F16, calibrate that file, and round it in a second run"
            }
            () if target && self.sequential => {
                "a target fits each layer to those before it anyway; omit `--sequential`"
            }
            () if self.text.is_some() && !target && !self.sequential && !watches && !rounds => {
                "`--text` goes with a target (`--size`, `--bpw`, `--max-kld`), with `--rounding output`, with \
                 `--sequential`, or with `key_length` or a number for `drop` in `[structure]`"
            }
            () => "",
        };
        match (wrong, self.choosing.given()) {
            ("", Some(option)) if !target => Err(Failure::Usage(format!(
                "`{option}` is for targets (`--size`, `--bpw`, `--max-kld`)"
            ))),
            ("", _) => Ok(()),
            (wrong, _) => Err(Failure::Usage(wrong.into())),
        }
    }

    /// The requested recipe; a target adds the types later.
    fn recipe(&self) -> Result<Recipe, Failure> {
        let mut recipe = match (&self.recipe, &self.preset) {
            (Some(path), _) => bounded::read_text(path, bounded::limits::RECIPE)?
                .parse::<Recipe>()
                .map_err(|e| Failure::file(path, e))?,
            (None, Some(name)) => plan::preset(name)?,
            (None, None) => Recipe {
                rounding: if self.target.goal().is_some() {
                    Rounding::Output
                } else {
                    Rounding::Nearest
                },
                ..Recipe::of(Base::F16)
            },
        };
        if let Some(keep) = self.keep {
            recipe = recipe.with_structure(Structure::keep(keep))?;
        }
        recipe.rounding = self.rounding.unwrap_or(recipe.rounding);
        Ok(recipe)
    }

    fn fit_options(&self) -> FitOptions {
        FitOptions {
            ctx: 512,
            chunks: self.chunks.unwrap_or(64),
            threads: self.resources.threads.map(|n| n as u32),
        }
    }
}

fn presets_help() -> String {
    let mut text = String::from("Presets:\n");
    for p in PRESETS {
        text.push_str(&format!("\n  {}: {}\n", p.name, p.about));
        for l in p.recipe.lines() {
            text.push_str(&format!("      {l}\n"));
        }
    }
    text.push_str(
        "\nZeros (`magnitude`, `wanda`, `sparsegpt`, `sparse-low-rank`) make a `.dwn` smaller. Stock \
         llama.cpp computes with them as with any other weight and gets no faster.\n",
    );
    let types: Vec<&str> = FILE_TYPES.iter().map(|t| t.name).collect();
    text.push_str("\nFile types, with llama-quantize's mixtures:\n  ");
    text.push_str(&types.join(", "));
    text.push_str(
        "\n\nIf a row length is not a multiple of a type's block, the next type with blocks of 32 \
         replaces it (q4_k: q5_0, q5_k: q5_1, q6_k: q8_0, smaller k- and i-quants: iq4_nl), or \
         f16; each such case is reported.",
    );
    text
}
