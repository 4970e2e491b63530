//! Time and memory that a file of a size takes, for the shapes of large models: checkpoints of random
//! weights, written for the purpose, with the fixture's tokenizer.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::shell::{json as report, number, root};
use crate::subject::program;

/// A model's shape.
struct Shape {
    name: &'static str,
    layers: usize,
    /// Elements of the residual stream.
    width: usize,
    /// Elements between the matrices of a feed-forward layer, or of an expert.
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head: usize,
    vocabulary: usize,
    tied: bool,
    /// Experts, and how many of them a token gets.
    experts: Option<(usize, usize)>,
    /// What `--memory` is given.
    memory: &'static str,
}

const SHAPES: &[Shape] = &[
    Shape {
        name: "llama-1b",
        layers: 16,
        width: 2048,
        hidden: 8192,
        heads: 32,
        kv_heads: 8,
        head: 64,
        vocabulary: 128_256,
        tied: true,
        experts: None,
        memory: "2G",
    },
    Shape {
        name: "llama-8b-4-layers",
        layers: 4,
        width: 4096,
        hidden: 14_336,
        heads: 32,
        kv_heads: 8,
        head: 128,
        vocabulary: 128_256,
        tied: false,
        experts: None,
        memory: "4G",
    },
    Shape {
        name: "llama-70b-1-layer",
        layers: 1,
        width: 8192,
        hidden: 28_672,
        heads: 64,
        kv_heads: 8,
        head: 128,
        vocabulary: 128_256,
        tied: false,
        experts: None,
        memory: "6G",
    },
    Shape {
        name: "qwen3-moe-2-layers",
        layers: 2,
        width: 2048,
        hidden: 768,
        heads: 32,
        kv_heads: 4,
        head: 128,
        vocabulary: 151_936,
        tied: false,
        experts: Some((128, 8)),
        memory: "4G",
    },
];

pub fn main(wanted: &[&str]) -> Result<(), String> {
    let chosen: Vec<&Shape> = match wanted {
        [] => SHAPES.iter().collect(),
        names => {
            let of = |name: &&str| SHAPES.iter().find(|s| s.name == *name).ok_or_else(unknown);
            names.iter().map(of).collect::<Result<_, _>>()?
        }
    };
    println!(
        "| shape | parameters | --memory | 40 %, minutes | minutes per billion | peak memory | then 35 %, minutes |\n\
         |---|---|---|---|---|---|---|"
    );
    for shape in chosen {
        let folder = root().join("target/scale").join(shape.name);
        let failed = |e: std::io::Error| format!("`{}`: {e}", folder.display());
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let parameters = shape.write(&folder).map_err(failed)?;
        let workspace = folder.join("workspace");
        let _ = std::fs::remove_dir_all(&workspace);
        let [(first, peak), (second, _)] = [
            shape.compress(&folder, &workspace, "40%")?,
            shape.compress(&folder, &workspace, "35%")?,
        ];
        println!(
            "| {} | {parameters} | {} | {:.1} | {:.1} | {:.2} GB | {:.1} |",
            shape.name,
            shape.memory,
            first / 60.0,
            first / 60.0 / (parameters as f64 / 1e9),
            peak / 1e9,
            second / 60.0
        );
        std::fs::remove_dir_all(&folder).map_err(failed)?;
    }
    Ok(())
}

fn unknown() -> String {
    let names: Vec<&str> = SHAPES.iter().map(|s| s.name).collect();
    format!("expected shapes of {}", names.join(", "))
}

impl Shape {
    /// Seconds and peak memory of a file of a size.
    fn compress(&self, folder: &Path, workspace: &Path, size: &str) -> Result<(f64, f64), String> {
        let start = Instant::now();
        let mut command = program("compress");
        command.args(["--json", "--effort", "fast", "--size", size]);
        command.args(["--memory", self.memory]).arg(folder);
        command.arg("--workspace").arg(workspace);
        command.arg("-o").arg(folder.join("out.gguf"));
        let told = report(&mut command)?;
        Ok((
            start.elapsed().as_secs_f64(),
            number(&told, "/peak_memory")?,
        ))
    }

    /// Names and shapes, rows first, as transformers stores them.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (width, hidden) = (self.width, self.hidden);
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize]| all.push((name, shape.to_vec()));
        add(
            "model.embed_tokens.weight".into(),
            &[self.vocabulary, width],
        );
        for layer in 0..self.layers {
            let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
            let (q, kv) = (self.heads * self.head, self.kv_heads * self.head);
            add(name("input_layernorm"), &[width]);
            add(name("post_attention_layernorm"), &[width]);
            add(name("self_attn.q_proj"), &[q, width]);
            add(name("self_attn.k_proj"), &[kv, width]);
            add(name("self_attn.v_proj"), &[kv, width]);
            add(name("self_attn.o_proj"), &[width, q]);
            let mut mlp = |prefix: &str| {
                add(name(&format!("{prefix}.gate_proj")), &[hidden, width]);
                add(name(&format!("{prefix}.up_proj")), &[hidden, width]);
                add(name(&format!("{prefix}.down_proj")), &[width, hidden]);
            };
            match self.experts {
                None => mlp("mlp"),
                Some((experts, _)) => {
                    (0..experts).for_each(|e| mlp(&format!("mlp.experts.{e}")));
                    add(name("mlp.gate"), &[experts, width]);
                    add(name("self_attn.q_norm"), &[self.head]);
                    add(name("self_attn.k_norm"), &[self.head]);
                }
            }
        }
        add("model.norm.weight".into(), &[width]);
        if !self.tied {
            add("lm_head.weight".into(), &[self.vocabulary, width]);
        }
        all
    }

    fn config(&self) -> Value {
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "hidden_size": self.width, "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head,
            "vocab_size": self.vocabulary, "tie_word_embeddings": self.tied,
            "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
            "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 0,
        });
        if let Some((experts, used)) = self.experts {
            config["architectures"] = json!(["Qwen3MoeForCausalLM"]);
            config["model_type"] = json!("qwen3_moe");
            config["num_experts"] = json!(experts);
            config["num_experts_per_tok"] = json!(used);
            config["moe_intermediate_size"] = json!(self.hidden);
            config["norm_topk_prob"] = json!(true);
        }
        config
    }

    /// Writes the checkpoint, and gives its parameters.
    fn write(&self, folder: &Path) -> std::io::Result<usize> {
        let fixture: PathBuf = root().join("fixtures/kjv-llama");
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(fixture.join(file), folder.join(file))?;
        }
        std::fs::write(folder.join("config.json"), self.config().to_string())?;
        let tensors = self.tensors();
        let mut header = Map::new();
        let mut end = 0;
        for (name, shape) in &tensors {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            let about = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
            header.insert(name.clone(), about);
        }
        let mut header = Value::Object(header).to_string();
        header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
        let mut file = BufWriter::new(File::create(folder.join("model.safetensors"))?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        for (name, shape) in &tensors {
            let spread = match (name.contains("embed"), shape.as_slice()) {
                (true, _) => 0.02,
                (_, [_, columns]) => 1.0 / (*columns as f32).sqrt(),
                _ => 0.0,
            };
            for _ in 0..shape.iter().product::<usize>() {
                let value = if spread > 0.0 {
                    spread * noise.next()
                } else {
                    1.0
                };
                file.write_all(&((value.to_bits() >> 16) as u16).to_le_bytes())?;
            }
        }
        file.flush()?;
        Ok(end / 2)
    }
}

/// Values of mean 0 and variance 1, near enough to a normal distribution's.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let parts = (0..4).map(|i| (self.0 >> (16 * i)) as u16);
        let sum: f32 = parts.map(|p| f32::from(p) / 65536.0 - 0.5).sum();
        sum * 3f32.sqrt()
    }
}
