//! Tiny Hugging Face folders, made by code.

use std::collections::BTreeMap;
use std::path::Path;

use dwindle::architecture::{self, Model};
use dwindle::checkpoint::Source;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Bytes of one tensor.
#[derive(Clone)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A folder to be written.
pub struct Folder {
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
    pub files: Vec<(&'static str, Vec<u8>)>,
}

pub const HIDDEN: usize = 8;
pub const FEED_FORWARD: usize = 12;
pub const LAYERS: usize = 2;
pub const HEADS: usize = 2;
pub const KV_HEADS: usize = 1;
pub const HEAD_DIM: usize = 4;
pub const VOCABULARY: usize = 264;
pub const EXPERTS: usize = 3;

/// A family's name and which of its parts it has.
pub struct Parts {
    pub biases: bool,
    pub head_norms: bool,
    pub output: bool,
    /// The template of an expert's weights, and their three names: gate, down, up.
    pub experts: Option<(&'static str, &'static str, [&'static str; 3])>,
}

/// A dense model without biases, with tied embeddings.
pub const DENSE: Parts = Parts {
    biases: false,
    head_norms: false,
    output: false,
    experts: None,
};

/// One of every family.
pub fn families() -> Vec<(&'static str, Folder)> {
    let biased = Parts {
        biases: true,
        output: true,
        ..DENSE
    };
    let normed = Parts {
        head_norms: true,
        ..DENSE
    };
    let mixtral = Parts {
        experts: Some((
            "block_sparse_moe.gate.weight",
            "block_sparse_moe.experts",
            ["w1", "w2", "w3"],
        )),
        ..DENSE
    };
    let qwen = Parts {
        head_norms: true,
        experts: Some((
            "mlp.gate.weight",
            "mlp.experts",
            ["gate_proj", "down_proj", "up_proj"],
        )),
        ..DENSE
    };
    let families = [
        ("LlamaForCausalLM", &DENSE),
        ("MistralForCausalLM", &DENSE),
        ("Qwen2ForCausalLM", &biased),
        ("Qwen3ForCausalLM", &normed),
        ("GraniteForCausalLM", &DENSE),
        ("MixtralForCausalLM", &mixtral),
        ("Qwen3MoeForCausalLM", &qwen),
    ];
    let folder = |(name, parts): (&'static str, &Parts)| {
        let mut folder = Folder::new(name, parts);
        if parts.experts.is_some() {
            folder.config["num_local_experts"] = json!(EXPERTS);
            folder.config["num_experts"] = json!(EXPERTS);
            folder.config["num_experts_per_tok"] = json!(2);
            folder.config["moe_intermediate_size"] = json!(FEED_FORWARD);
        }
        (name, folder)
    };
    families.map(folder).into()
}

impl Folder {
    /// A folder for an architecture, with byte-level BPE split as GPT-2 does.
    pub fn new(architecture: &str, parts: &Parts) -> Folder {
        let mut folder = Folder {
            config: json!({
                "architectures": [architecture],
                "hidden_size": HIDDEN,
                "intermediate_size": FEED_FORWARD,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": KV_HEADS,
                "head_dim": HEAD_DIM,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 64,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "tie_word_embeddings": !parts.output,
                "bos_token_id": 0,
                "eos_token_id": 0,
            }),
            tensors: BTreeMap::new(),
            files: vec![
                ("tokenizer.json", tokenizer(gpt2()).to_string().into_bytes()),
                (
                    "tokenizer_config.json",
                    br#"{"eos_token": "<|endoftext|>"}"#.to_vec(),
                ),
            ],
        };
        folder.add("model.embed_tokens.weight", &[VOCABULARY, HIDDEN]);
        folder.add("model.norm.weight", &[HIDDEN]);
        if parts.output {
            folder.add("lm_head.weight", &[VOCABULARY, HIDDEN]);
        }
        (0..LAYERS).for_each(|layer| folder.add_layer(layer, parts));
        folder
    }

    fn add_layer(&mut self, layer: usize, parts: &Parts) {
        let (query, key) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        let prefix = format!("model.layers.{layer}");
        let mut add = |name: &str, shape: &[usize]| self.add(&format!("{prefix}.{name}"), shape);
        add("input_layernorm.weight", &[HIDDEN]);
        add("post_attention_layernorm.weight", &[HIDDEN]);
        for (name, rows) in [("q", query), ("k", key), ("v", key)] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, HIDDEN]);
            if parts.biases {
                add(&format!("self_attn.{name}_proj.bias"), &[rows]);
            }
        }
        add("self_attn.o_proj.weight", &[HIDDEN, query]);
        if parts.head_norms {
            add("self_attn.q_norm.weight", &[HEAD_DIM]);
            add("self_attn.k_norm.weight", &[HEAD_DIM]);
        }
        let up = [FEED_FORWARD, HIDDEN];
        let down = [HIDDEN, FEED_FORWARD];
        if let Some((router, experts, names)) = parts.experts {
            add(router, &[EXPERTS, HIDDEN]);
            for expert in 0..EXPERTS {
                for (name, shape) in names.iter().zip([up, down, up]) {
                    add(&format!("{experts}.{expert}.{name}.weight"), &shape);
                }
            }
        } else {
            add("mlp.gate_proj.weight", &up);
            add("mlp.up_proj.weight", &up);
            add("mlp.down_proj.weight", &down);
        }
    }

    /// Adds a BF16 tensor whose bytes differ from row to row and from tensor to tensor.
    pub fn add(&mut self, name: &str, shape: &[usize]) {
        let seed = self.tensors.len() as u16 * 7;
        let count: usize = shape.iter().product();
        let tensor = Tensor {
            dtype: Dtype::BF16,
            shape: shape.to_vec(),
            bytes: (0..count as u16)
                .flat_map(|i| (0x3c00 + seed.wrapping_add(i) % 512).to_le_bytes())
                .collect(),
        };
        self.tensors.insert(name.to_string(), tensor);
    }

    /// Replaces a file or adds it.
    pub fn file(&mut self, name: &'static str, bytes: impl Into<Vec<u8>>) {
        self.files.retain(|(n, _)| *n != name);
        self.files.push((name, bytes.into()));
    }

    /// Writes everything with one safetensors file.
    pub fn write(&self, dir: &Path) {
        self.write_without_weights(dir);
        std::fs::write(dir.join("model.safetensors"), serialize(&self.tensors)).unwrap();
    }

    /// Writes everything with two shards and an index; `second` says what is in the second.
    pub fn write_sharded(&self, dir: &Path, second: impl Fn(&str) -> bool) {
        self.write_without_weights(dir);
        let mut index = serde_json::Map::new();
        for (i, file) in SHARDS.iter().enumerate() {
            let part: BTreeMap<String, Tensor> = self
                .tensors
                .iter()
                .filter(|(name, _)| second(name) == (i == 1))
                .map(|(name, tensor)| (name.clone(), tensor.clone()))
                .collect();
            std::fs::write(dir.join(file), serialize(&part)).unwrap();
            index.extend(part.keys().map(|name| (name.clone(), json!(file))));
        }
        let index = json!({"metadata": {}, "weight_map": index});
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    fn write_without_weights(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        for (name, bytes) in &self.files {
            std::fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

pub const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

fn serialize(tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let views = tensors.iter().map(|(name, t)| {
        let view = TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap();
        (name.clone(), view)
    });
    safetensors::serialize(views, None).unwrap()
}

/// GPT-2's pre-tokenizer.
pub fn gpt2() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
}

/// A `tokenizer.json` of 260 tokens: an end of text, the 256 bytes and three merges.
pub fn tokenizer(pre_tokenizer: Value) -> Value {
    let mut vocab = serde_json::Map::new();
    vocab.insert("<|endoftext|>".into(), json!(0));
    let mut beyond = 256;
    for byte in 0..=255u32 {
        // GPT-2's way to write any byte as a visible letter.
        let visible = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let letter = if visible { byte } else { beyond };
        beyond += u32::from(!visible);
        let letter = char::from_u32(letter).unwrap();
        vocab.insert(letter.to_string(), json!(byte + 1));
    }
    let merges = ["Ġ t", "h e", "Ġt he"];
    for (i, merge) in merges.iter().enumerate() {
        vocab.insert(merge.replace(' ', ""), json!(257 + i));
    }
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": 0, "content": "<|endoftext|>", "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        }],
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
}

/// A SentencePiece model of these pieces and kinds.
pub fn sentencepiece(pieces: &[(&str, f32, u8)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (text, score, kind) in pieces {
        let mut piece = vec![0x0a, text.len() as u8];
        piece.extend(text.as_bytes());
        piece.push(0x15);
        piece.extend(score.to_le_bytes());
        piece.extend([0x18, *kind]);
        out.extend([0x0a, piece.len() as u8]);
        out.extend(piece);
    }
    out
}

pub type Opened = (Box<dyn Source>, Model);

pub fn open(folder: &Folder) -> Opened {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny-model");
    folder.write(&path);
    architecture::open(&path).unwrap()
}

pub fn refused(folder: &Folder) -> String {
    let dir = tempfile::tempdir().unwrap();
    folder.write(dir.path());
    error(dir.path())
}

pub fn error(path: &Path) -> String {
    match architecture::open(path) {
        Ok(_) => panic!("`{}` was opened", path.display()),
        Err(error) => error.to_string(),
    }
}

/// Holds an error against what it must say.
#[track_caller]
pub fn says(error: &str, parts: &[&str]) {
    for part in parts {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
}
