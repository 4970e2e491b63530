//! dwindle beside the tools that people use today, on the same work in one run, alternated.
//!
//! ```text
//! cargo bench --bench peers -- --model DIR [--converter convert_hf_to_gguf.py] [--python PYTHON]
//!     [--llama-quantize PROGRAM] [--synthetic]
//! ```
//!
//! A peer that is not named is left out, and the table says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;
use dwindle::architecture::{self, role, values};
use dwindle::method::svd;
use rayon::prelude::*;
use serde_json::{Value, json};

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
        "{:<46} {:>10} {:>10} {:>8}",
        "task (medians of alternated runs, seconds)", "dwindle", "peer", "ratio"
    );
    bench.conversion()?;
    bench.quantization()?;
    bench.verification()?;
    bench.svd()?;
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

    fn verification(&self) -> Result<()> {
        let file = self.path("f16.gguf");
        self.pair(
            "verify, against sha256sum",
            || seconds(self.dwindle(&["verify"]).arg(&file)),
            || seconds(Command::new("sha256sum").arg(&file)),
        )
    }

    fn svd(&self) -> Result<()> {
        let (source, model) = architecture::open(&self.model)?;
        let mut matrices = Vec::new();
        for tensor in &model.tensors {
            if role(&tensor.name).1 == "attn_k" && tensor.shape.len() == 2 {
                let w = values(tensor, source.as_ref(), 0..tensor.row_count())?;
                matrices.push((w, tensor.shape[1] as usize, tensor.shape[0] as usize));
            }
        }
        let Some(python) = &self.args.python else {
            left_out("torch.linalg.svd", "--python");
            return Ok(());
        };
        let (_, m, n) = matrices[0];
        let script = format!(
            "import torch, time\n\
             torch.manual_seed(0)\n\
             ws = [torch.randn({m}, {n}) for _ in range({})]\n\
             torch.linalg.svd(ws[0], full_matrices=False)\n\
             t = time.perf_counter()\n\
             for w in ws: torch.linalg.svd(w, full_matrices=False)\n\
             print(time.perf_counter() - t)",
            matrices.len()
        );
        self.pair(
            &format!(
                "SVD of {} attn_k of {m} x {n}, against torch",
                matrices.len()
            ),
            || {
                let start = Instant::now();
                matrices.par_iter().for_each(|(w, m, n)| {
                    let half = (m * n) / (m + n) / 2;
                    let d = svd::decompose(w, *m, *n).expect("weights are finite");
                    std::hint::black_box(d.factors(w, *m, *n, half));
                });
                Ok(start.elapsed().as_secs_f64())
            },
            || {
                let output = Command::new(python).args(["-c", &script]).output()?;
                Ok(String::from_utf8(output.stdout)?.trim().parse()?)
            },
        )
    }

    /// A Llama of 4 GB with the fixture's tokenizer and random weights.
    fn synthetic(&self) -> Result<()> {
        let folder = self.path("synthetic");
        std::fs::create_dir_all(&folder)?;
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(
                Path::new("fixtures/kjv-llama").join(file),
                folder.join(file),
            )?;
        }
        let bytes = write_synthetic(&folder)?;
        let out = self.path("synthetic.gguf");
        for preset in ["f16", "q8_0"] {
            let output = self
                .compress(&folder, preset, &out)
                .args(["--memory", "512M", "--json"])
                .output()?;
            let report: Value = serde_json::from_slice(&output.stdout)?;
            let peak = report["peak_memory"].as_u64().unwrap_or(0);
            println!(
                "{:<46} {:>10.0} MiB peak memory",
                format!(
                    "{:.1} GB to {preset} with --memory 512M",
                    bytes as f64 / 1e9
                ),
                peak as f64 / f64::from(1 << 20)
            );
        }
        Ok(())
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
        println!("{name:<46} {a:>10.3} {b:>10.3} {:>7.2}x", b / a);
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

fn write_synthetic(folder: &Path) -> Result<u64> {
    use std::io::Write;
    const HIDDEN: u64 = 4096;
    const FFN: u64 = 14336;
    const KV: u64 = 1024;
    const LAYERS: u64 = 9;
    const VOCAB: u64 = 1024;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": VOCAB,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0,
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;

    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV, HIDDEN]),
            ("self_attn.v_proj", vec![KV, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![FFN, HIDDEN]),
            ("mlp.up_proj", vec![FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors.sort();
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape) in &tensors {
        let end = offset + 2 * shape.iter().product::<u64>();
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let header = Value::Object(header).to_string();
    let mut file =
        std::io::BufWriter::new(std::fs::File::create(folder.join("model.safetensors"))?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    // Random mantissas and signs around 2^-6: what a weight looks like, and the same every time.
    let mut state = 1u64;
    let block: Vec<u8> = (0..1 << 20)
        .flat_map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let bits = (state >> 48) as u16;
            (0x3c00 | (bits & 0x80ff)).to_le_bytes()
        })
        .collect();
    let mut left = offset as usize;
    while left > 0 {
        let n = left.min(block.len());
        file.write_all(&block[..n])?;
        left -= n;
    }
    file.flush()?;
    Ok(offset)
}
