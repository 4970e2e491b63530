//! dwindle beside the tools that people use today, on the same work in one run, alternated.
//!
//! ```text
//! cargo bench --bench peers -- --model DIR [--converter convert_hf_to_gguf.py] [--python PYTHON]
//!     [--llama-quantize PROGRAM] [--llama-imatrix PROGRAM --text FILE] [--synthetic]
//! ```
//!
//! A peer that is not named is left out, and the table says so.

#[path = "../synthetic/mod.rs"]
mod checkpoints;
mod mathematics;
mod synthetic;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;

#[derive(Parser)]
struct Args {
    /// A Hugging Face checkpoint
    #[arg(long, default_value = "fixtures/kjv-llama")]
    model: PathBuf,
    /// llama.cpp's convert_hf_to_gguf.py
    #[arg(long)]
    converter: Option<PathBuf>,
    /// A Python with what the converter needs, and torch
    #[arg(long)]
    python: Option<PathBuf>,
    /// llama.cpp's llama-quantize
    #[arg(long)]
    llama_quantize: Option<PathBuf>,
    /// llama.cpp's llama-imatrix
    #[arg(long, requires = "text")]
    llama_imatrix: Option<PathBuf>,
    /// A text to calibrate on; without it nothing that needs statistics is measured
    #[arg(long)]
    text: Option<PathBuf>,
    /// Also convert a synthetic checkpoint of 4 GB and print the peak memory
    #[arg(long)]
    synthetic: bool,
    /// Runs of each
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let args = Args::parse();
    let folder = tempfile::tempdir_in("target")?;
    let bench = Bench {
        model: args.model.canonicalize()?,
        out: folder.path().to_path_buf(),
        args,
    };
    println!(
        "{:<54} {:>10} {:>10} {:>8}",
        "task (medians of alternated runs, seconds)", "dwindle", "peer", "ratio"
    );
    bench.conversion()?;
    bench.quantization()?;
    bench.verification()?;
    bench.svd()?;
    bench.calibration()?;
    bench.whitened_svd()?;
    if bench.args.synthetic {
        bench.synthetic()?;
    }
    Ok(())
}

struct Bench {
    args: Args,
    model: PathBuf,
    out: PathBuf,
}

impl Bench {
    fn dwindle(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dwindle"));
        command.args(args);
        command
    }

    fn compress(&self, source: &Path, preset: &str, out: &Path) -> Command {
        let mut command = self.dwindle(&["compress", "--preset", preset, "--output"]);
        command.arg(out).arg(source);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    fn conversion(&self) -> Result<()> {
        let ours = self.path("f16.gguf");
        let run = || seconds(&mut self.compress(&self.model, "f16", &ours));
        if let (Some(python), Some(converter)) = (&self.args.python, &self.args.converter) {
            self.pair("HF to f16 GGUF, against convert_hf_to_gguf.py", run, || {
                seconds(
                    Command::new(python)
                        .arg(converter)
                        .arg(&self.model)
                        .args(["--outtype", "f16", "--outfile"])
                        .arg(self.path("peer.gguf")),
                )
            })?;
        } else {
            left_out("convert_hf_to_gguf.py", "--python and --converter");
        }
        let copy = self.path("copy");
        std::fs::create_dir_all(&copy)?;
        self.pair("HF to f16 GGUF, against cp and sync", run, || {
            seconds(
                Command::new("sh")
                    .args(["-c", "cp \"$0\"/*.safetensors \"$1\" && sync \"$1\"/*"])
                    .arg(&self.model)
                    .arg(&copy),
            )
        })?;
        self.pair("HF to f16 GGUF, against cp alone", run, || {
            seconds(
                Command::new("sh")
                    .args(["-c", "cp \"$0\"/*.safetensors \"$1\""])
                    .arg(&self.model)
                    .arg(&copy),
            )
        })
    }

    fn quantization(&self) -> Result<()> {
        let source = self.path("f16.gguf");
        let Some(peer) = &self.args.llama_quantize else {
            left_out("llama-quantize", "--llama-quantize");
            return Ok(());
        };
        self.pair(
            "f16 GGUF to q4_k_m, against llama-quantize",
            || seconds(&mut self.compress(&source, "q4_k_m", &self.path("q4.gguf"))),
            || {
                seconds(
                    Command::new(peer)
                        .arg(&source)
                        .arg(self.path("peer-q4.gguf"))
                        .arg("Q4_K_M"),
                )
            },
        )
    }

    /// On 16 chunks of 512 tokens.
    fn calibration(&self) -> Result<()> {
        let (Some(peer), Some(text)) = (&self.args.llama_imatrix, &self.args.text) else {
            left_out("llama-imatrix", "--llama-imatrix and --text");
            return Ok(());
        };
        let source = self.path("f16.gguf");
        self.pair(
            "calibration with Gram matrices, against llama-imatrix",
            || {
                let mut ours = self.dwindle(&["calibrate", "--chunks", "16", "--text"]);
                ours.arg(text).arg(&source).arg("-o");
                seconds(ours.arg(self.path("stats.safetensors")))
            },
            || {
                let mut peer = Command::new(peer);
                peer.args(["--chunks", "16", "-c", "512", "-m"])
                    .arg(&source);
                peer.arg("-f").arg(text).arg("-o");
                seconds(peer.arg(self.path("imatrix.gguf")))
            },
        )
    }

    fn verification(&self) -> Result<()> {
        let file = self.path("f16.gguf");
        self.pair(
            "verify, against sha256sum",
            || seconds(self.dwindle(&["verify"]).arg(&file)),
            || seconds(Command::new("sha256sum").arg(&file)),
        )
    }

    /// Runs two tasks in turn and prints their medians.
    fn pair(
        &self,
        name: &str,
        ours: impl Fn() -> Result<f64>,
        peer: impl Fn() -> Result<f64>,
    ) -> Result<()> {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for run in 0..=self.args.runs {
            let (x, y) = (settled(&ours)?, settled(&peer)?);
            if run > 0 {
                a.push(x);
                b.push(y);
            }
        }
        let (a, b) = (median(a), median(b));
        println!("{name:<54} {a:>10.3} {b:>10.3} {:>7.2}x", b / a);
        Ok(())
    }
}

/// Runs a task when the disk is idle, so that none pays for what another left unwritten.
fn settled(task: impl Fn() -> Result<f64>) -> Result<f64> {
    Command::new("sync").status()?;
    task()
}

fn left_out(peer: &str, options: &str) {
    println!("{peer}: left out, name it with {options}");
}

fn seconds(command: &mut Command) -> Result<f64> {
    let start = Instant::now();
    let status = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(format!("{command:?} failed: {status}").into());
    }
    Ok(start.elapsed().as_secs_f64())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
