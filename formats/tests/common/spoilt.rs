//! A container file that tests build, spoil and sign: digests are no secret, so a hostile file has
//! them too.

#[path = "sign.rs"]
pub mod sign;

use dwindle_formats::container::{EncodedChunk, VERSION, key};
use dwindle_formats::gguf::{Metadata, TensorInfo, TensorType, Value, encode_header};
use serde_json::json;

/// A file to be spoilt: a raw dense tensor `w`, a factored tensor `v`, a compressed tensor `z`.
pub struct File {
    pub plan: serde_json::Value,
    /// Entries that stand in for others or are added before the header's digest.
    pub set: Vec<(&'static str, Value)>,
    pub missing: Option<&'static str>,
    pub after_digest: bool,
    pub tensors: Vec<TensorInfo>,
    pub chunks: Vec<(u8, Vec<u8>)>,
    pub trailing: Vec<u8>,
    pub header_padding: u8,
}

pub fn good() -> File {
    let ty = TensorType::F16;
    let z = EncodedChunk::compressed(ty, vec![0; 2048]);
    let info = |name: &str, shape: &[u64], ty, offset| TensorInfo {
        name: name.into(),
        shape: shape.into(),
        ty,
        offset,
    };
    let tensors = vec![
        info("w", &[8, 2], TensorType::F32, 0),
        info("v.a", &[8, 2], ty, 64),
        info("v.b", &[2, 4], ty, 96),
        info("z", &[z.stored.len() as u64, 1], TensorType::I8, 128),
    ];
    let part =
        |name: &str, ty: &str, shape: &[u64]| json!({"name": name, "type": ty, "shape": shape});
    File {
        plan: json!({"tensors": [
            {"name": "w", "shape": [8, 2], "type": "F32", "method": "quantize", "form": "dense",
             "parts": [part("w", "F32", &[8, 2])]},
            {"name": "v", "shape": [8, 4], "type": "BF16", "method": "svd", "form": "low-rank",
             "parameters": {"rank": 2}, "parts": [part("v.a", "F16", &[8, 2]), part("v.b", "F16", &[2, 4])]},
            {"name": "z", "shape": [16, 64], "type": "F16", "method": "quantize", "form": "dense",
             "parts": [part("z", "F16", &[16, 64])]},
        ]}),
        set: Vec::new(),
        missing: None,
        after_digest: false,
        tensors,
        chunks: vec![
            (0, vec![1; 64]),
            (0, vec![2; 32]),
            (0, vec![3; 16]),
            (z.codec as u8, z.stored.into_owned()),
        ],
        trailing: Vec::new(),
        header_padding: 0,
    }
}

impl File {
    pub fn metadata(&self) -> Metadata {
        let mut m = Metadata::new();
        m.set("general.architecture", "llama");
        m.set(key::VERSION, VERSION);
        m.set(key::PRODUCER, "a test");
        m.set(key::PLAN, self.plan.to_string());
        m.set(key::ERROR, vec![0f32; 3]);
        let chunks = &self.chunks;
        m.set(key::CODEC, chunks.iter().map(|c| c.0).collect::<Vec<u8>>());
        let lengths = chunks.iter().map(|c| c.1.len() as u32);
        m.set(key::CHUNK_BYTES, lengths.collect::<Vec<u32>>());
        m.set(key::CHUNK_DIGEST, vec![0u8; 32 * chunks.len()]);
        for (key, value) in &self.set {
            m.set(*key, value.clone());
        }
        m.set(key::HEADER_DIGEST, vec![0u8; 32]);
        if self.after_digest {
            m.set("dwindle.more", 1u32);
        }
        if let Some(key) = self.missing {
            m.remove(key);
        }
        m
    }

    /// The file with the digests that it calls for.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = encode_header(&self.metadata(), &self.tensors, 32);
        if self.header_padding != 0 {
            assert_eq!(out.pop(), Some(0), "the header ends in padding");
            out.push(self.header_padding);
        }
        for (_, stored) in &self.chunks {
            out.extend(stored);
            out.resize(out.len().next_multiple_of(32), 0);
        }
        out.extend(&self.trailing);
        sign::sign(&mut out);
        out
    }
}

pub fn good_but(spoil: impl FnOnce(&mut File)) -> Vec<u8> {
    let mut file = good();
    spoil(&mut file);
    file.bytes()
}
