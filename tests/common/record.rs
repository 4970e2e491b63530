//! Records of families: what transformers and llama.cpp's converter make of a tiny checkpoint
//! (`fixtures/families/make.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::folder::{Folder, Tensor};
use super::program::fixture;
use super::vocabulary;

/// Tokens of the text that predictions are about.
const TOKENS: usize = 64;

/// A family's record.
#[derive(Deserialize)]
pub struct Record {
    /// The file's name, without its ending.
    #[serde(skip)]
    pub name: String,
    pub config: Value,
    /// Shapes of the checkpoint's tensors, slowest dimension first.
    pub checkpoint: BTreeMap<String, Vec<usize>>,
    /// Logarithms of the probabilities that transformers gives each next token.
    pub predictions: Vec<f64>,
    /// Of an encoder, the direction of the mean of a text's rows in transformers.
    #[serde(default)]
    pub embedding: Vec<f64>,
    /// The kind of vocabulary; none for the fixture's.
    #[serde(default)]
    tokenizer: Option<String>,
    /// Whether the converter asked for a tokenizer that the checkpoint lacks, so that keys of the tokenizer
    /// say nothing.
    pub own_tokenizer: bool,
    /// The converter's keys.
    pub keys: Map<String, Value>,
    /// The converter's tensors, none where it does not know the family: shape, row length first, and digest of the values in F32.
    pub tensors: BTreeMap<String, (Vec<u64>, String)>,
}

impl Record {
    /// One of them.
    pub fn of(name: &str) -> Record {
        Record::all().into_iter().find(|r| r.name == name).unwrap()
    }

    /// Those of models that predict tokens.
    pub fn decoders() -> Vec<Record> {
        let mut all = Record::all();
        all.retain(|r| !r.predictions.is_empty());
        all
    }

    /// Those of models that embed texts.
    pub fn encoders() -> Vec<Record> {
        let mut all = Record::all();
        all.retain(|r| !r.embedding.is_empty());
        all
    }

    /// All of them.
    pub fn all() -> Vec<Record> {
        let read = |path: PathBuf| {
            let mut record: Record =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            record.name = path.file_stem().unwrap().to_string_lossy().into();
            record
        };
        let folder = std::fs::read_dir(fixture("families")).unwrap();
        let files = folder.map(|entry| entry.unwrap().path());
        let mut all: Vec<PathBuf> = files
            .filter(|p| p.extension() == Some("json".as_ref()))
            .collect();
        all.sort();
        assert!(!all.is_empty());
        all.into_iter().map(read).collect()
    }

    /// The checkpoint, made again.
    pub fn folder(&self) -> Folder {
        let tensor = |(name, shape): (&String, &Vec<usize>)| {
            let values = values(name, shape.len(), shape.iter().product());
            let upper = |v: f32| ((v.to_bits() >> 16) as u16).to_le_bytes();
            let tensor = Tensor {
                dtype: Dtype::BF16,
                shape: shape.clone(),
                bytes: values.into_iter().flat_map(upper).collect(),
            };
            (name.clone(), tensor)
        };
        let names = ["tokenizer.json", "tokenizer_config.json"];
        let of_fixture = |name| std::fs::read(fixture("kjv-llama").join(name)).unwrap();
        let bytes = |json: Value| json.to_string().into_bytes();
        let files = match self.tokenizer.as_deref() {
            None => names.map(of_fixture),
            Some("wordpiece") => vocabulary::wordpiece(1024).map(bytes),
            Some("unigram") => vocabulary::unigram(1024).map(bytes),
            Some(other) => panic!("{other}"),
        };
        Folder {
            config: self.config.clone(),
            tensors: self.checkpoint.iter().map(tensor).collect(),
            files: names.into_iter().zip(files).collect(),
        }
    }

    /// Writes the checkpoint into a folder.
    pub fn write(&self, dir: &Path) {
        self.folder().write(dir);
    }

    /// The text that predictions are about.
    pub fn text(&self) -> Vec<i32> {
        let numbers = numbers("tokens", TOKENS);
        let token = |n: u8| match self.embedding.is_empty() {
            true => i32::from(n) * 4 % 1024,
            false => 2 + i32::from(n) * 4 % 1022,
        };
        numbers.map(token).collect()
    }
}

/// A tensor's values, which follow from its name: about zero, those of norms about one.
fn values(name: &str, dimensions: usize, count: usize) -> Vec<f32> {
    let is_norm = dimensions == 1 && !name.ends_with("bias");
    let value = |n: u8| match is_norm {
        true => 1.0 + (f32::from(n / 4) - 32.0) / 128.0,
        false => (f32::from(n) - 128.0) / 512.0,
    };
    numbers(name, count).map(value).collect()
}

/// Bytes that follow from a name: SplitMix64 seeded with FNV-1a.
fn numbers(name: &str, count: usize) -> impl Iterator<Item = u8> {
    let fnv = |seed: u64, byte: &u8| (seed ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let seed = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, fnv);
    (1..=count as u64).map(move |i| {
        let state = seed.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((state ^ (state >> 31)) >> 56) as u8
    })
}
