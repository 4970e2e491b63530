//! Checkpoints of any size with random weights, the same every time.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

/// The sizes of a Llama.
pub struct Sizes {
    pub hidden: u64,
    pub ffn: u64,
    pub heads: u64,
    pub kv_heads: u64,
    pub layers: u64,
}

/// Tokens of the fixture's tokenizer, and a little room.
const VOCAB: u64 = 1024;

/// Writes a checkpoint of these sizes with random weights and the fixture's tokenizer; returns the
/// bytes of its weights.
pub fn write(folder: &Path, sizes: &Sizes) -> std::io::Result<u64> {
    std::fs::create_dir_all(folder)?;
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        let from = Path::new("fixtures/kjv-llama").join(file);
        std::fs::copy(from, folder.join(file))?;
    }
    let (hidden, ffn) = (sizes.hidden, sizes.ffn);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads, "num_key_value_heads": sizes.kv_heads, "vocab_size": VOCAB,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0,
    });
    std::fs::write(folder.join("config.json"), config.to_string())?;

    let tensors = tensors(sizes);
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
    write_weights(&mut file, offset as usize)?;
    file.flush()?;
    Ok(offset)
}

/// Names and shapes, in the order of the file.
fn tensors(sizes: &Sizes) -> Vec<(String, Vec<u64>)> {
    let (hidden, ffn) = (sizes.hidden, sizes.ffn);
    let kv = hidden / sizes.heads * sizes.kv_heads;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_string(), vec![VOCAB, hidden]),
        ("model.norm.weight".into(), vec![hidden]),
    ];
    for layer in 0..sizes.layers {
        for (name, shape) in [
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors.sort();
    tensors
}

/// Writes so many bytes of weights.
fn write_weights(file: &mut impl Write, bytes: usize) -> std::io::Result<()> {
    // Random mantissas and signs around 2^-6: what a weight looks like. Each run of 2^20 elements is
    // the same: where the row length is a power of two, the rank is low and factors are exact.
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
    let mut left = bytes;
    while left > 0 {
        let n = left.min(block.len());
        file.write_all(&block[..n])?;
        left -= n;
    }
    Ok(())
}
