//! A small file as the writer makes it.

use std::collections::BTreeMap;
use std::path::Path;

use dwindle_formats::container::{
    ChunkGeometry, ContainerWriter, EncodedChunk, Form, Part, StoredPlan, StoredTensor, WriteError,
};
use dwindle_formats::gguf::{Metadata, TensorType};

/// A container (payloads compressed) or a stock output (raw) of a few kilobytes.
pub fn sample(compress: bool) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sample");
    write(&path, compress).unwrap();
    std::fs::read(path).unwrap()
}

/// Writes it to a path.
pub fn write(path: &Path, compress: bool) -> Result<(), WriteError> {
    let plan = plan(compress);
    let mut writer = ContainerWriter::create(path, model(), plan.clone(), &[1; 32])?;
    for tensor in &plan.tensors[writer.resumed_tensors()..] {
        for part in &tensor.parts {
            let bytes: Vec<u8> = (0..part.bytes()).map(|i| (i * i % 11) as u8).collect();
            let geometry = ChunkGeometry::of(part);
            for chunk in bytes.chunks((geometry.chunk_rows * geometry.row_bytes) as usize) {
                writer.push(match compress {
                    true => EncodedChunk::compressed(part.ty, chunk.to_vec()),
                    false => EncodedChunk::raw(chunk.to_vec()),
                })?;
            }
        }
        writer.end_tensor(0.5)?;
    }
    writer.finish()?;
    Ok(())
}

fn plan(factors: bool) -> StoredPlan {
    let mut tensors = vec![
        tensor("a", TensorType::F32, &[5], &[]),
        tensor("b", TensorType::BF16, &[64, 3], &[]),
        tensor("d", TensorType::Q8_0, &[32, 3, 2], &[]),
    ];
    if factors {
        tensors.push(tensor("c", TensorType::F16, &[64, 32], &[[64, 4], [4, 32]]));
    }
    StoredPlan { tensors }
}

fn tensor(name: &str, ty: TensorType, shape: &[u64], factors: &[[u64; 2]]) -> StoredTensor {
    let part = |name: String, shape: &[u64]| Part {
        name,
        ty,
        shape: shape.into(),
    };
    let parts = match factors {
        [] => vec![part(name.into(), shape)],
        factors => (factors.iter().zip(["a", "b"]))
            .map(|(shape, suffix)| part(format!("{name}.{suffix}"), shape))
            .collect(),
    };
    StoredTensor {
        name: name.into(),
        shape: shape.into(),
        ty: TensorType::F32,
        method: "test".into(),
        parameters: BTreeMap::from([("rank".into(), 4.into())]),
        form: match factors {
            [] => Form::Dense,
            _ => Form::LowRank,
        },
        parts,
    }
}

fn model() -> Metadata {
    let mut m = Metadata::new();
    m.set("general.architecture", "llama");
    m.set("general.alignment", 32u32);
    m.set("llama.rope.scaling", vec![1.0f32, 2.0]);
    m.set("tokenizer.ggml.add_bos_token", true);
    m.set("tokenizer.ggml.tokens", vec!["a".to_string(), "ß".into()]);
    m
}
