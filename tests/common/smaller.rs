//! Making models with random weights smaller, and comparing what is left.
use std::path::{Path, PathBuf};

use dwindle::llama::context::{Context, ContextOptions, FlashAttention};
use dwindle::llama::model::{Model, ModelOptions};
use dwindle::runtime::{Factors, load};
use dwindle_formats::gguf::{TensorType, Value, read_header};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::folder::{Folder, families};
use crate::common::program::{dwindle, fixture, stdout};
use crate::common::tiny::{Tiny, batch};

/// Statistics of a model that were measured on the fixture's text.
pub fn calibrate(model: &Path) -> PathBuf {
    let stats = model.with_extension("stats");
    let mut command = dwindle(["calibrate", "--ctx", "64", "--chunks", "32", "-t", "1"]);
    command
        .arg(model)
        .arg("--text")
        .arg(fixture("kjv-calibration.txt"));
    stdout(command.arg("-o").arg(&stats));
    stats
}

/// `dwindle compress` with this table `[structure]`.
pub fn compress(model: &Path, ty: &str, structure: &str, to: &Path) -> assert_cmd::Command {
    let recipe = to.with_extension("toml");
    std::fs::write(
        &recipe,
        format!("type = \"{ty}\"\n[structure]\n{structure}\n"),
    )
    .unwrap();
    let mut command = dwindle(["compress"]);
    command.arg(model).arg("--recipe").arg(recipe);
    command.arg("--stats").arg(model.with_extension("stats"));
    command.arg("-o").arg(to);
    command
}

/// Loads a file.
pub fn open(file: &Path) -> Model {
    load(
        file,
        &ModelOptions::default(),
        Factors::default(),
        &mut |_, _| (),
    )
    .unwrap()
}

/// The logits of the first 48 tokens of the calibration's text: what is redundant in it need not be
/// in a text of other characters.
pub fn logits(model: &Model) -> Vec<f32> {
    let options = ContextOptions {
        ctx: 64,
        batch: 64,
        threads: Some(2),
        // In full precision: what stands for other keys and values rounds otherwise.
        cache_type: TensorType::F32,
        flash_attention: FlashAttention::Off,
        ..ContextOptions::default()
    };
    let text = std::fs::read_to_string(fixture("kjv-calibration.txt")).unwrap();
    let tokens = model.tokenize(&text[..4096], true, false).unwrap()[..48].to_vec();
    let mut context = Context::new(model, &options).unwrap();
    context.decode(&batch(&tokens)).unwrap();
    context.logits().to_vec()
}

/// The largest difference of two models' logits, as a part of the largest logit.
pub fn difference(a: &Path, b: &Path) -> f32 {
    let (a, b) = (logits(&open(a)), logits(&open(b)));
    assert_eq!(a.len(), b.len());
    let largest = a.iter().fold(0f32, |m, v| m.max(v.abs()));
    let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
    off.fold(0.0, f32::max) / largest
}

/// Gives a folder random weights, in which `change` may make something redundant: it sees each
/// tensor's name, shape and values.
fn randomize(folder: &mut Folder, change: impl Fn(&str, &[usize], &mut [f32])) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (name, tensor) in &mut folder.tensors {
        let elements: usize = tensor.shape.iter().product();
        let mut values: Vec<f32> = (0..elements)
            .map(|_| match tensor.shape.len() {
                1 if name.ends_with("norm.weight") => 1.0,
                _ => rng.random_range(-0.6..0.6),
            })
            .collect();
        change(name, &tensor.shape, &mut values);
        tensor.dtype = safetensors::Dtype::F32;
        tensor.bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    }
}

/// A model of each family with such weights, measured, and the file that holds all of it: the family's
/// name, the folder, the file.
pub fn each_family(
    dir: &Path,
    change: impl Fn(&str, &[usize], &mut [f32]),
) -> impl Iterator<Item = (&'static str, PathBuf, PathBuf)> {
    families().into_iter().map(move |(name, mut folder)| {
        randomize(&mut folder, &change);
        let (model, whole) = (dir.join(name), dir.join("whole.gguf"));
        folder.write(&model);
        calibrate(&model);
        let mut command = dwindle(["compress", "--preset", "f32"]);
        stdout(command.arg(&model).arg("-o").arg(&whole));
        (name, model, whole)
    })
}

/// Changes a matrix of the tiny Llama, rows one after another.
pub fn change(tiny: &mut Tiny, name: &str, change: impl Fn(&mut Vec<f32>)) {
    let at = tiny.layout.iter().position(|t| t.name == name).unwrap();
    let floats = tiny.data[at]
        .chunks_exact(4)
        .map(bytemuck::pod_read_unaligned);
    let mut values: Vec<f32> = floats.collect();
    change(&mut values);
    tiny.data[at] = bytemuck::cast_slice(&values).to_vec();
}

/// What a file's metadata say.
pub fn metadata(file: &Path, key: &str) -> Option<Value> {
    let header = read_header(&std::fs::read(file).unwrap()).unwrap();
    header.metadata.get(key).cloned()
}
