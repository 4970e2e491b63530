//! A checkpoint of some gigabytes, to see how much memory its conversion takes.

use std::path::Path;

use serde_json::{Value, json};

use super::{Bench, Result};

impl Bench {
    /// A Llama of 4 GB with the fixture's tokenizer and random weights.
    pub fn synthetic(&self) -> Result<()> {
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
                "{:<54} {:>10.0} MiB peak memory",
                format!(
                    "{:.1} GB to {preset} with --memory 512M",
                    bytes as f64 / 1e9
                ),
                peak as f64 / f64::from(1 << 20)
            );
        }
        Ok(())
    }
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
