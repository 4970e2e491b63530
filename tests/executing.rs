//! Factors that are executed give what their product gives.

#[path = "common/tiny.rs"]
mod tiny;

mod program;

use std::path::{Path, PathBuf};

use dwindle::llama::context::{Context, ContextOptions, FlashAttention};
use dwindle::llama::model::{Model, ModelOptions};
use dwindle::pipeline::{Factors, load};
use dwindle_formats::gguf::TensorType;
use program::{checkpoint, dwindle, fixture, stdout};
use tempfile::{TempDir, tempdir};
use tiny::{Kind, Tiny, VOCAB, batch, low_rank};

const RANK: usize = 32;
const ROLES: &str = "roles = [\"attn_q\", \"attn_k\", \"attn_v\", \"attn_output\", \"ffn_gate\", \
     \"ffn_up\", \"ffn_down\", \"ffn_gate_exps\", \"ffn_up_exps\", \"ffn_down_exps\", \
     \"token_embd\", \"output\"]\n";

fn compress(model: &Path, rule: &str, stats: Option<&Path>, to: &Path) {
    let recipe = to.with_extension("toml");
    std::fs::write(&recipe, format!("type = \"f16\"\n{rule}\n")).unwrap();
    let mut command = dwindle(["compress"]);
    command.arg(model).arg("--recipe").arg(&recipe);
    if let Some(stats) = stats {
        command.arg("--stats").arg(stats);
    }
    stdout(command.arg("-o").arg(to));
}

fn open(file: &Path, options: &ModelOptions, factors: Factors) -> Model {
    load(file, options, factors, &mut |_, _| ()).unwrap()
}

/// 64 tokens' logits.
fn logits(model: &Model, options: &ContextOptions) -> Vec<f32> {
    let vocab = model.n_vocab() as i32;
    let tokens: Vec<i32> = (0..64).map(|i| 1 + (i * i * 7 + i) % (vocab - 1)).collect();
    let mut context = Context::new(model, options).unwrap();
    // In two steps, so that keys and values are read back.
    let tokens = batch(&tokens);
    context.decode(&tokens[..40]).unwrap();
    let mut out = context.logits().to_vec();
    context.decode(&tokens[40..]).unwrap();
    out.extend_from_slice(context.logits());
    assert_eq!(out.len(), 64 * model.n_vocab());
    out
}

fn context() -> ContextOptions {
    ContextOptions {
        ctx: 128,
        batch: 64,
        threads: Some(2),
        ..ContextOptions::default()
    }
}

/// Equal choices everywhere, and logits within a distance.
#[track_caller]
fn same(found: &[f32], expected: &[f32], vocab: usize, distance: f32) {
    let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
    for (i, (f, e)) in found.chunks(vocab).zip(expected.chunks(vocab)).enumerate() {
        let off = f.iter().zip(e).map(|(a, b)| (a - b).abs());
        let off = off.fold(0.0, f32::max);
        assert!(off <= distance, "position {i}: {off}");
        assert_eq!(best(f), best(e), "position {i}");
    }
}

/// A model of exact rank as F16, dense and factored.
fn pair(kind: Kind) -> (TempDir, PathBuf, PathBuf) {
    let dir = tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    low_rank(kind, RANK).write(&model);
    let (dense, factored) = (dir.path().join("dense.gguf"), dir.path().join("f.dwn"));
    compress(&model, "", None, &dense);
    let rule = format!("[[rule]]\n{ROLES}method = \"svd\"\nrank = {RANK}\ntype = \"f16\"");
    compress(&model, &rule, None, &factored);
    (dir, dense, factored)
}

#[test]
fn exact_factors_give_the_dense_models_logits() {
    for kind in [Kind::Tied, Kind::Untied, Kind::Qwen3, Kind::Mixture] {
        let (_dir, dense, factored) = pair(kind);
        let options = ModelOptions::default();
        let dense = open(&dense, &options, Factors::Executed);
        let expected = logits(&dense, &context());
        let executed = open(&factored, &options, Factors::Executed);
        assert!(executed.misused().is_empty(), "{kind:?}");
        let found = logits(&executed, &context());
        same(&found, &expected, VOCAB as usize, 0.02);
        assert!(executed.size() < dense.size() * 7 / 10, "{kind:?}");
        let memory = |model: &Model| Context::new(model, &context()).unwrap().memory().model;
        assert!(
            memory(&executed) as f64 <= executed.size() as f64 * 1.05,
            "{kind:?}: {} {}",
            memory(&executed),
            executed.size()
        );
    }
}

#[test]
fn however_the_context_is_made() {
    let (dir, dense, factored) = pair(Kind::Untied);
    let adapter = dir.path().join("adapter.gguf");
    Tiny::adapter().write(&adapter);
    let flash = |flash_attention| ContextOptions {
        flash_attention,
        ..context()
    };
    let quantized = ContextOptions {
        cache_type: TensorType::Q8_0,
        ..flash(FlashAttention::On)
    };
    let plain = ModelOptions::default();
    let adapted = ModelOptions {
        lora: vec![adapter],
        ..ModelOptions::default()
    };
    let partly = ModelOptions {
        gpu_layers: Some(1),
        ..ModelOptions::default()
    };
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for (model, context) in [
        (&plain, flash(FlashAttention::On)),
        (&plain, flash(FlashAttention::Off)),
        (&plain, quantized),
        (&adapted, context()),
        (&partly, context()),
    ] {
        let expected = logits(&open(&dense, model, Factors::Executed), &context);
        let found = logits(&open(&factored, model, Factors::Executed), &context);
        same(&found, &expected, VOCAB as usize, 0.02);
        seen.push(found);
    }
    // The adapter does something.
    assert!(
        seen[3]
            .iter()
            .zip(&seen[4])
            .any(|(a, b)| (a - b).abs() > 0.1)
    );
}

#[test]
fn every_form_gives_what_its_product_gives() {
    let dir = tempdir().unwrap();
    let calibrate = |model: &Path, to: &Path| {
        let mut command = dwindle(["calibrate", "--chunks", "8", "--ctx", "64", "-t", "1"]);
        command
            .arg(model)
            .arg("--text")
            .arg(fixture("kjv-calibration.txt"));
        stdout(command.arg("-o").arg(to));
    };
    let stats = dir.path().join("stats.safetensors");
    calibrate(&checkpoint(), &stats);
    let attention = "[[rule]]\nroles = [\"attn_q\", \"attn_k\", \"attn_v\"]\n";
    let mut forms: Vec<(PathBuf, PathBuf, String)> = [
        "method = \"svd\"\njoint = true\nkeep = 0.6",
        "method = \"tucker\"\nover = \"heads\"\nkeep = 0.5",
        "method = \"tucker\"\nover = \"heads\"\nkeep = 0.5\nall_ways = true",
        "method = \"tucker\"\nover = \"layers\"\nstack = 4\nkeep = 0.5",
        "method = \"tucker\"\nover = \"layers\"\nstack = 4\nkeep = 0.5\nall_ways = true",
        "method = \"cp\"\nover = \"layers\"\nrank = 8",
        "method = \"cp\"\nover = \"heads\"\nrank = 32",
        "method = \"tensor-train\"\nover = \"layers\"\nkeep = 0.4",
        "method = \"tensor-train\"\nover = \"heads\"\nkeep = 0.4",
        "method = \"tensor-train\"\nmodes = 2\nkeep = 0.3",
        "method = \"tensor-train\"\nmodes = 3\nkeep = 0.3",
        "method = \"sparse-low-rank\"\nsparsity = 0.6\nrank = 32",
    ]
    .map(|rule| {
        (
            checkpoint(),
            stats.clone(),
            format!("{attention}{rule}\ntype = \"f16\""),
        )
    })
    .to_vec();
    let mixture = dir.path().join("mixture.gguf");
    tiny::mixture(TensorType::F32).write(&mixture);
    let of_mixture = dir.path().join("mixture.safetensors");
    calibrate(&mixture, &of_mixture);
    let experts = "[[rule]]\nroles = [\"ffn_gate_exps\", \"ffn_up_exps\", \"ffn_down_exps\"]\n";
    for rule in [
        "method = \"svd\"\nkeep = 0.5",
        "method = \"tucker\"\nkeep = 0.3",
        "method = \"tucker\"\nkeep = 0.3\nall_ways = true",
        "method = \"cp\"\nrank = 4",
        "method = \"tensor-train\"\nkeep = 0.3",
    ] {
        let rule = format!("{experts}{rule}\ntype = \"f16\"");
        forms.push((mixture.clone(), of_mixture.clone(), rule));
    }
    for (model, stats, rule) in forms {
        let file = dir.path().join("x.dwn");
        compress(&model, &rule, Some(&stats), &file);
        let options = ModelOptions::default();
        let product = open(&file, &options, Factors::MultipliedOut);
        let executed = open(&file, &options, Factors::Executed);
        assert!(executed.misused().is_empty(), "{rule}");
        let (found, expected) = (logits(&executed, &context()), logits(&product, &context()));
        let vocab = product.n_vocab();
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let off = off.fold(0.0, f32::max);
        assert!(off < 0.05, "{rule}: {off}");
        assert_eq!(found.len(), 64 * vocab);
    }
}
