//! Models in several GGUF files, made as llama-gguf-split makes them.

use std::path::{Path, PathBuf};

use dwindle_formats::gguf::{Metadata, TensorLayout, encode_header, lay_out, read_header};

/// Splits a GGUF file into so many.
pub fn split(whole: &Path, stem: &Path, count: usize) -> Vec<PathBuf> {
    let bytes = std::fs::read(whole).unwrap();
    let header = read_header(&bytes).unwrap();
    let share = header.tensors.len().div_ceil(count);
    let groups = header.tensors.chunks(share).enumerate();
    let part = |(i, tensors): (usize, &[_])| {
        let mut metadata = match i {
            0 => header.metadata.clone(),
            _ => Metadata::new(),
        };
        metadata.set("split.no", i as u16);
        metadata.set("split.count", count as u16);
        metadata.set("split.tensors.count", header.tensors.len() as i32);
        let layout = |t: &dwindle_formats::gguf::TensorInfo| TensorLayout {
            name: t.name.clone(),
            shape: t.shape.clone(),
            ty: t.ty,
        };
        let (infos, len) = lay_out(tensors.iter().map(layout).collect(), 32).unwrap();
        let mut out = encode_header(&metadata, &infos, 32);
        let start = out.len();
        for (old, new) in tensors.iter().zip(&infos) {
            out.resize(start + new.offset as usize, 0);
            out.extend(&bytes[header.data_range(old)]);
        }
        out.resize(start + len as usize, 0);
        let path = name(stem, i + 1, count);
        std::fs::write(&path, out).unwrap();
        path
    };
    groups.map(part).collect()
}

/// Copies a GGUF file without what dwindle wrote about itself.
pub fn strip(signed: &Path, plain: &Path) {
    let bytes = std::fs::read(signed).unwrap();
    let header = read_header(&bytes).unwrap();
    let mut metadata = header.metadata.clone();
    metadata.retain(|key| !key.starts_with("dwindle."));
    let mut out = encode_header(&metadata, &header.tensors, header.alignment);
    out.extend(&bytes[header.data_start as usize..]);
    std::fs::write(plain, out).unwrap();
}

/// The name of a part.
pub fn name(stem: &Path, number: usize, count: usize) -> PathBuf {
    let stem = stem.display();
    format!("{stem}-{number:05}-of-{count:05}.gguf").into()
}
