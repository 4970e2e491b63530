//! The seeds of the fuzz targets: each must be accepted, or it seeds nothing.

#[path = "common/sample.rs"]
mod sample;
#[path = "common/states.rs"]
mod states;

use std::path::{Path, PathBuf};

use dwindle_formats::container::{Container, verify};
use dwindle_formats::gguf::{
    Metadata, TensorLayout, TensorType, encode_header, lay_out, read_header,
};
use dwindle_formats::{pickle, state};

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target)
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(corpus(target)).unwrap();
    let seeds: Vec<_> = files
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!seeds.is_empty());
    seeds
}

#[test]
fn seeds_are_accepted() {
    for bytes in seeds("gguf") {
        read_header(&bytes).unwrap();
    }
    for bytes in seeds("pickle") {
        pickle::read(&bytes).unwrap();
    }
    for bytes in seeds("state") {
        state::read(&bytes).unwrap();
    }
    for bytes in seeds("container") {
        let container = Container::read(&bytes).unwrap();
        assert!(verify(&container, &bytes, |_| (), |_| ()).is_empty());
    }
}

/// A block of every element type.
fn every_type() -> Vec<u8> {
    let layout = TensorType::all().map(|ty| TensorLayout {
        name: ty.name().into(),
        shape: vec![ty.block_len(), 1],
        ty,
    });
    let (infos, data) = lay_out(layout.collect(), 8).unwrap();
    let mut metadata = Metadata::new();
    metadata.set("general.alignment", 8u32);
    let mut bytes = encode_header(&metadata, &infos, 8);
    bytes.resize(bytes.len() + data as usize, 0);
    bytes
}

#[test]
#[ignore = "writes the seeds anew, for when the format has changed"]
fn write_seeds() {
    let mut seeds = vec![
        ("gguf", "types.gguf".to_string(), every_type()),
        ("gguf", "stock.gguf".into(), sample::sample(false)),
        ("container", "stock.gguf".into(), sample::sample(false)),
        ("container", "factors.dwn".into(), sample::sample(true)),
    ];
    for (name, kind) in states::kinds() {
        seeds.push(("state", format!("{name}.bin"), states::state(&kind).1));
    }
    for (target, name, bytes) in seeds {
        let folder = corpus(target);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}
