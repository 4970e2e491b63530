//! Ten thousand bit flips and many truncations of files as the program writes them.

use dwindle_formats::container::{Container, verify};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::tempdir;

use crate::common::program::{checkpoint, dwindle, stdout};

const FLIPS: usize = 10_000;
const TRUNCATIONS: usize = 1_000;

/// Small types, so that the files can be read ten thousand times.
const STOCK: &str = "type = \"q2_k\"\n";
const FACTORS: &str = "type = \"q2_k\"\n\
    [[rule]]\nroles = [\"attn_k\"]\nmethod = \"svd\"\nrank = 32\ntype = \"f16\"\n\
    [[rule]]\nroles = [\"attn_v\"]\ntype = \"source\"\n";

fn made(recipe: &str, name: &str) -> Vec<u8> {
    let dir = tempdir().unwrap();
    let path = dir.path().join("recipe.toml");
    std::fs::write(&path, recipe).unwrap();
    let output = dir.path().join(name);
    let mut command = dwindle(["compress"]);
    command.arg(checkpoint()).arg("--recipe").arg(path);
    stdout(command.arg("--output").arg(&output));
    std::fs::read(output).unwrap()
}

fn is_detected(bytes: &[u8]) -> bool {
    match Container::read(bytes) {
        Err(_) => true,
        Ok(container) => !verify(&container, bytes, |_| (), |_| ()).is_empty(),
    }
}

fn every_sample_is_detected(mut bytes: Vec<u8>) {
    let parts = Container::read(&bytes).unwrap().plan.parts().count();
    assert!(parts >= 38);
    assert!(!is_detected(&bytes));
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for _ in 0..FLIPS {
        let (at, bit) = (rng.random_range(0..bytes.len()), rng.random_range(0..8));
        bytes[at] ^= 1 << bit;
        assert!(is_detected(&bytes), "flip of bit {bit} of byte {at}");
        bytes[at] ^= 1 << bit;
    }
    for _ in 0..TRUNCATIONS {
        let len = rng.random_range(0..bytes.len());
        assert!(is_detected(&bytes[..len]), "truncation to {len}");
    }
    bytes.push(0);
    assert!(is_detected(&bytes), "a byte too many");
}

#[test]
fn every_flip_and_truncation_of_a_stock_output_is_detected() {
    every_sample_is_detected(made(STOCK, "model.gguf"));
}

#[test]
fn every_flip_and_truncation_of_a_container_is_detected() {
    every_sample_is_detected(made(FACTORS, "model.dwn"));
}
