//! A Llama of some kilobytes with random weights, made where it is needed.
use std::path::Path;

use dwindle::ggml;
use dwindle::llama::context::BatchToken;
use dwindle::llama::feed::{Produce, TensorFeed};
use dwindle_formats::gguf::{
    DEFAULT_ALIGNMENT, Metadata, TensorLayout, TensorType, encode_header, lay_out,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub const EMBD: u64 = 256;
pub const FFN: u64 = 512;
pub const LAYERS: u32 = 2;
pub const CTX: u32 = 128;
pub const EXPERTS: u64 = 4;
pub const USED_EXPERTS: u64 = 2;
/// Unknown, begin, end, every byte, and a few pieces.
pub const VOCAB: u64 = 3 + 256 + 5;

/// Tokens as the beginning of a text, each wanting logits.
pub fn batch(tokens: &[i32]) -> Vec<BatchToken> {
    let token = |(position, token): (usize, &i32)| BatchToken {
        token: *token,
        position: position as i32,
        sequence: 0,
        logits: true,
    };
    tokens.iter().enumerate().map(token).collect()
}

pub struct Tiny {
    pub metadata: Metadata,
    pub layout: Vec<TensorLayout>,
    pub data: Vec<Vec<u8>>,
}

/// The model with its matrices in this type; the same values for each type.
pub fn tiny(ty: TensorType) -> Tiny {
    make(ty, 1, metadata(), tensors())
}

/// The model with other weights and norms.
pub fn another(ty: TensorType) -> Tiny {
    let mut tiny = make(ty, 2, metadata(), tensors());
    for (layout, data) in tiny.layout.iter().zip(&mut tiny.data) {
        if layout.name.ends_with("_norm.weight") {
            data[..4].copy_from_slice(&1.25f32.to_le_bytes());
        }
    }
    tiny
}

/// The model with experts instead of its feed-forward layers.
pub fn mixture(ty: TensorType) -> Tiny {
    let mut metadata = metadata();
    metadata.set("llama.expert_count", EXPERTS as u32);
    metadata.set("llama.expert_used_count", USED_EXPERTS as u32);
    let mut list = tensors();
    list.retain(|(name, _)| !name.contains("ffn_") || name.contains("norm"));
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("gate_inp", vec![EMBD, EXPERTS]),
            ("gate_exps", vec![EMBD, FFN, EXPERTS]),
            ("up_exps", vec![EMBD, FFN, EXPERTS]),
            ("down_exps", vec![FFN, EMBD, EXPERTS]),
        ] {
            list.push((format!("blk.{layer}.ffn_{name}.weight"), shape));
        }
    }
    make(ty, 3, metadata, list)
}

/// The model, or one of its kin, with matrices that are products of factors of this rank, so that
/// a decomposition of the rank loses nothing.
pub fn low_rank(kind: Kind, rank: usize) -> Tiny {
    let (mut metadata, mut list) = (metadata(), tensors());
    match kind {
        Kind::Tied => {}
        Kind::Untied => list.push(("output.weight".to_string(), vec![EMBD, VOCAB])),
        Kind::Mixture => return factors(mixture(TensorType::F32), rank),
        Kind::Gpt2 => {
            metadata = renamed(&metadata, "gpt2");
            metadata.set("gpt2.attention.layer_norm_epsilon", 1e-5f32);
            metadata.set("gpt2.attention.head_count_kv", 4u32);
            list = vec![
                ("token_embd.weight".to_string(), vec![EMBD, VOCAB]),
                (
                    "position_embd.weight".to_string(),
                    vec![EMBD, u64::from(CTX)],
                ),
                ("output_norm.weight".to_string(), vec![EMBD]),
                ("output_norm.bias".to_string(), vec![EMBD]),
            ];
            for layer in 0..LAYERS {
                for (name, shape) in [
                    ("attn_norm", vec![EMBD]),
                    ("attn_qkv", vec![EMBD, 3 * EMBD]),
                    ("attn_output", vec![EMBD, EMBD]),
                    ("ffn_norm", vec![EMBD]),
                    ("ffn_up", vec![EMBD, FFN]),
                    ("ffn_down", vec![FFN, EMBD]),
                ] {
                    let bias = vec![*shape.last().unwrap()];
                    list.push((format!("blk.{layer}.{name}.weight"), shape));
                    list.push((format!("blk.{layer}.{name}.bias"), bias));
                }
            }
        }
        Kind::Qwen3 => {
            metadata = renamed(&metadata, "qwen3");
            let head = EMBD / 4;
            metadata.set("qwen3.attention.key_length", head as u32);
            metadata.set("qwen3.attention.value_length", head as u32);
            for layer in 0..LAYERS {
                for name in ["attn_q_norm", "attn_k_norm"] {
                    list.push((format!("blk.{layer}.{name}.weight"), vec![head]));
                }
            }
        }
    }
    factors(make(TensorType::F32, 4, metadata, list), rank)
}

/// Kin of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tied,
    Untied,
    Qwen3,
    Mixture,
    /// With positions that are looked up, and queries, keys and values in one matrix.
    Gpt2,
}

/// The metadata of a Llama as those of another architecture with the same keys.
fn renamed(metadata: &Metadata, architecture: &str) -> Metadata {
    let mut out = Metadata::new();
    for (key, value) in metadata.iter() {
        match key.strip_prefix("llama.") {
            Some(rest) => out.set(format!("{architecture}.{rest}"), value.clone()),
            None => out.set(key, value.clone()),
        }
    }
    out.set("general.architecture", architecture);
    out
}

/// Makes every matrix a product of its own columns and rows.
fn factors(mut tiny: Tiny, rank: usize) -> Tiny {
    for (layout, data) in tiny.layout.iter().zip(&mut tiny.data) {
        if layout.shape.len() < 2 || layout.name.contains("gate_inp") {
            continue;
        }
        let (n, m) = (layout.shape[0] as usize, layout.shape[1] as usize);
        let floats = data.chunks_exact(4).map(bytemuck::pod_read_unaligned);
        let mut values: Vec<f32> = floats.collect();
        for matrix in values.chunks_exact_mut(n * m) {
            let (a, b) = (matrix[..rank * n].to_vec(), matrix[..rank * m].to_vec());
            let scale = 4.0 / (rank as f32).sqrt();
            for (i, row) in matrix.chunks_exact_mut(n).enumerate() {
                for (j, v) in row.iter_mut().enumerate() {
                    let products = (0..rank).map(|k| a[k * n + j] * b[i * rank + k]);
                    *v = scale * products.sum::<f32>();
                }
            }
        }
        *data = bytemuck::cast_slice(&values).to_vec();
    }
    tiny
}

fn make(ty: TensorType, seed: u64, metadata: Metadata, tensors: Vec<(String, Vec<u64>)>) -> Tiny {
    dwindle::llama::backend::init();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut layout, mut data) = (Vec::new(), Vec::new());
    for (name, shape) in tensors {
        let len = shape.iter().product::<u64>() as usize;
        let norm = shape.len() == 1;
        let scale = 1.5 / (EMBD as f32).sqrt();
        let values: Vec<f32> = (0..len)
            .map(|_| {
                if norm {
                    1.0
                } else {
                    rng.random_range(-scale..scale)
                }
            })
            .collect();
        let ty = if norm || name.contains("gate_inp") {
            TensorType::F32
        } else {
            ty
        };
        let mut bytes = vec![0; ty.bytes(&shape).unwrap() as usize];
        ggml::quantize(ty, &values, shape[0] as usize, None, &mut bytes).unwrap();
        layout.push(TensorLayout { name, shape, ty });
        data.push(bytes);
    }
    Tiny {
        metadata,
        layout,
        data,
    }
}

impl Tiny {
    /// A LoRA adapter for the attention's queries and the feed-forward's outputs.
    pub fn adapter() -> Tiny {
        let mut metadata = Metadata::new();
        metadata.set("general.type", "adapter");
        metadata.set("general.architecture", "llama");
        metadata.set("adapter.type", "lora");
        metadata.set("adapter.lora.alpha", 8f32);
        let mut list = Vec::new();
        for layer in 0..LAYERS {
            for (name, n, m) in [("attn_q", EMBD, EMBD), ("ffn_down", FFN, EMBD)] {
                let name = format!("blk.{layer}.{name}.weight");
                list.push((format!("{name}.lora_a"), vec![n, 8]));
                list.push((format!("{name}.lora_b"), vec![8, m]));
            }
        }
        make(TensorType::F32, 5, metadata, list)
    }

    pub fn write(&self, path: &Path) {
        let (infos, len) = lay_out(self.layout.clone(), DEFAULT_ALIGNMENT).unwrap();
        let mut bytes = encode_header(&self.metadata, &infos, DEFAULT_ALIGNMENT);
        let start = bytes.len();
        bytes.resize(start + len as usize, 0);
        for (info, data) in infos.iter().zip(&self.data) {
            let at = start + info.offset as usize;
            bytes[at..at + data.len()].copy_from_slice(data);
        }
        std::fs::write(path, bytes).unwrap();
    }

    pub fn feed(&self) -> TensorFeed<'_> {
        let produce: Produce<'_> = Box::new(|index, out| {
            out.extend_from_slice(&self.data[index]);
            Ok(())
        });
        TensorFeed::new(&self.metadata, self.layout.clone(), produce).unwrap()
    }
}

fn tensors() -> Vec<(String, Vec<u64>)> {
    let mut list = vec![
        ("token_embd.weight".to_string(), vec![EMBD, VOCAB]),
        ("output_norm.weight".to_string(), vec![EMBD]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("attn_norm", vec![EMBD]),
            ("attn_q", vec![EMBD, EMBD]),
            ("attn_k", vec![EMBD, EMBD / 2]),
            ("attn_v", vec![EMBD, EMBD / 2]),
            ("attn_output", vec![EMBD, EMBD]),
            ("ffn_norm", vec![EMBD]),
            ("ffn_gate", vec![EMBD, FFN]),
            ("ffn_up", vec![EMBD, FFN]),
            ("ffn_down", vec![FFN, EMBD]),
        ] {
            list.push((format!("blk.{layer}.{name}.weight"), shape));
        }
    }
    list
}

fn metadata() -> Metadata {
    let mut m = Metadata::new();
    m.set("general.architecture", "llama");
    m.set("general.name", "tiny");
    m.set("llama.context_length", CTX);
    m.set("llama.embedding_length", EMBD as u32);
    m.set("llama.block_count", LAYERS);
    m.set("llama.feed_forward_length", FFN as u32);
    m.set("llama.attention.head_count", 4u32);
    m.set("llama.attention.head_count_kv", 2u32);
    m.set("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
    m.set("llama.rope.dimension_count", EMBD as u32 / 4);
    m.set("llama.vocab_size", VOCAB as u32);
    let (mut tokens, mut types) = (vec!["<unk>".to_string()], vec![2i32]);
    for special in ["<s>", "</s>"] {
        tokens.push(special.to_string());
        types.push(3);
    }
    for byte in 0..=255u8 {
        tokens.push(format!("<0x{byte:02X}>"));
        types.push(6);
    }
    for piece in ["\u{2581}", "a", "b", "ab", "\u{2581}a"] {
        tokens.push(piece.to_string());
        types.push(1);
    }
    assert_eq!(tokens.len() as u64, VOCAB);
    let scores: Vec<f32> = (0..tokens.len()).map(|i| -(i as f32)).collect();
    m.set("tokenizer.ggml.model", "llama");
    m.set("tokenizer.ggml.tokens", tokens);
    m.set("tokenizer.ggml.scores", scores);
    m.set("tokenizer.ggml.token_type", types);
    m.set("tokenizer.ggml.bos_token_id", 1u32);
    m.set("tokenizer.ggml.eos_token_id", 2u32);
    m.set("tokenizer.ggml.unknown_token_id", 0u32);
    m.set("tokenizer.ggml.add_bos_token", true);
    m.set(
        "tokenizer.chat_template",
        "{% for m in messages %}<|im_start|>{% endfor %}",
    );
    m
}
