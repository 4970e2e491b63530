//! Models that lose what is redundant in them, and say the same afterwards.

use dwindle_formats::gguf::{Array, TensorType, Value as Meta, read_header};
use serde_json::Value;
use tempfile::tempdir;

use crate::common::folder::{FEED_FORWARD, HIDDEN};
use crate::common::program::{checkpoint, dwindle, fixture, refusal, says, stdout};
use crate::common::smaller::{
    calibrate, change, compress, difference, each_family, metadata, open,
};
use crate::common::tiny;
use crate::common::tiny::{EMBD, FFN, Kind, Tiny};

/// Gives the second half of the feed-forward layers' columns the values of the first.
fn repeat_columns(_: &str, shape: &[usize], values: &mut [f32]) {
    if shape == [FEED_FORWARD, HIDDEN] {
        values.copy_within(..values.len() / 2, values.len() / 2);
    }
}

#[test]
fn every_family_loses_columns_that_repeat_others() {
    let dir = tempdir().unwrap();
    for (name, model, whole) in each_family(dir.path(), repeat_columns) {
        let half = dir.path().join("half.gguf");
        stdout(&mut compress(&model, "f32", "ffn = 0.5", &half));
        let off = difference(&whole, &half);
        assert!(off < 1e-3, "{name}: {off}");
        // Less than a budget would leave.
        let few = dir.path().join("few.gguf");
        stdout(&mut compress(&model, "f32", "ffn = 0.1", &few));
        let header = read_header(&std::fs::read(&half).unwrap()).unwrap();
        let down = header
            .tensors
            .iter()
            .find(|t| t.name.starts_with("blk.1.ffn_down"));
        assert_eq!(down.unwrap().shape[0] as usize, FEED_FORWARD / 2, "{name}");
    }
}

fn repeat_half(tiny: &mut Tiny, name: &str) {
    change(tiny, name, |v| {
        let half = v.len() / 2;
        v.copy_within(..half, half);
    });
}

#[test]
fn heads_and_blocks_that_give_nothing_new_leave() {
    let dir = tempdir().unwrap();
    for kind in [Kind::Untied, Kind::Qwen3] {
        let mut tiny = tiny::low_rank(kind, 64);
        for name in ["attn_q", "attn_k", "attn_v"] {
            repeat_half(&mut tiny, &format!("blk.0.{name}.weight"));
            repeat_half(&mut tiny, &format!("blk.1.{name}.weight"));
        }
        let model = dir.path().join("model.gguf");
        tiny.write(&model);
        calibrate(&model);
        let small = dir.path().join("small.gguf");
        stdout(&mut compress(&model, "f32", "heads = 1", &small));
        assert!(difference(&model, &small) < 1e-3, "{kind:?}");
        let arch = if kind == Kind::Qwen3 {
            "qwen3"
        } else {
            "llama"
        };
        let count = metadata(&small, &format!("{arch}.attention.head_count_kv"));
        assert_eq!(count, Some(1u32.into()));
    }

    // A block that adds nothing.
    let mut tiny = tiny::tiny(TensorType::F32);
    for name in ["blk.0.attn_output.weight", "blk.0.ffn_down.weight"] {
        change(&mut tiny, name, |v| v.fill(0.0));
    }
    let model = dir.path().join("two.gguf");
    tiny.write(&model);
    calibrate(&model);
    let small = dir.path().join("one.gguf");
    stdout(&mut compress(&model, "f32", "drop = [0]", &small));
    assert!(difference(&model, &small) < 1e-5);
    assert_eq!(metadata(&small, "llama.block_count"), Some(1u32.into()));
}

#[test]
fn a_budget_takes_the_columns_where_they_are_redundant() {
    let dir = tempdir().unwrap();
    let mut tiny = tiny::tiny(TensorType::F32);
    for name in ["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"] {
        repeat_half(&mut tiny, name);
    }
    let model = dir.path().join("model.gguf");
    tiny.write(&model);
    let stats = calibrate(&model);
    let small = dir.path().join("small.gguf");
    // A quarter of the second largest part: half of one of two feed-forward layers.
    let (d, f) = (EMBD as f64, FFN as f64);
    let block = 3.0 * d * f + 3.0 * d * d + 2.0 * d;
    let keep = 1.0 - 1.5 * d * f / (2.0 * block);
    let structure = format!("keep = {}", keep + 1e-6);
    let missing = refusal(&mut compress(&model, "f32", &structure, &small), 3);
    says(&missing, &["`blk.0.ffn_down.weight`", "--diagnosis"]);

    let diagnosis = dir.path().join("diagnosis.json");
    let mut command = dwindle(["diagnose", "--ctx", "64", "--chunks", "2", "-t", "1"]);
    command.arg(&model).arg("--stats").arg(&stats);
    command.arg("--text").arg(fixture("kjv-heldout.txt"));
    stdout(command.arg("-o").arg(&diagnosis));
    let with_diagnosis = |structure: &str| {
        let mut command = compress(&model, "f32", structure, &small);
        command.arg("--diagnosis").arg(&diagnosis);
        command
    };
    stdout(&mut with_diagnosis(&structure));
    assert!(difference(&model, &small) < 1e-3);
    let widths = metadata(&small, "deci.feed_forward_length");
    assert_eq!(
        widths,
        Some(Meta::Array(Array::U32(vec![FFN as u32 / 2, FFN as u32])))
    );
    stdout(dwindle(["verify"]).arg(&small));

    // The same, fitted to the text; and through the container.
    let mut command = with_diagnosis(&structure);
    command.args(["--sequential", "--chunks", "4", "--text"]);
    stdout(command.arg(fixture("kjv-calibration.txt")));
    assert!(difference(&model, &small) < 0.02);
    let container = dir.path().join("small.dwn");
    let mut command = compress(&model, "f32", &structure, &container);
    stdout(command.arg("--diagnosis").arg(&diagnosis));
    assert!(difference(&model, &container) < 1e-3);
    let sentence = refusal(&mut with_diagnosis("keep = 0.1"), 3);
    says(
        &sentence,
        &[
            "`keep` is 0.1, expected 0.",
            "or more of this model's blocks",
        ],
    );
}

#[test]
fn the_fixture_gets_smaller_and_sequence_repairs_it() {
    let dir = tempdir().unwrap();
    let stats = dir.path().join("stats.safetensors");
    let mut command = dwindle(["calibrate", "--chunks", "16", "-t", "2"]);
    command
        .arg(checkpoint())
        .arg("--text")
        .arg(fixture("kjv-calibration.txt"));
    stdout(command.arg("-o").arg(&stats));
    let recipe = dir.path().join("recipe.toml");
    std::fs::write(&recipe, "type = \"f16\"\n[structure]\nffn = 0.75\n").unwrap();
    let file = dir.path().join("small.gguf");
    let divergence = |options: &[&str]| -> f64 {
        let mut command = dwindle(["compress", "--json"]);
        command.arg(checkpoint()).arg("--stats").arg(&stats);
        command.arg("--recipe").arg(&recipe).arg("-o").arg(&file);
        if !options.is_empty() {
            command.args(options).arg(fixture("kjv-calibration.txt"));
        }
        let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
        let left = report["structure"]["parameters"].as_f64().unwrap()
            / report["structure"]["source_parameters"].as_f64().unwrap();
        assert!((0.78..0.9).contains(&left), "{left}");
        let mut command = dwindle(["eval", "--json", "--chunks", "4", "--reference"]);
        command.arg(checkpoint()).arg(&file);
        let text = fixture("kjv-heldout.txt");
        let report: Value = serde_json::from_str(&stdout(command.arg("--text").arg(text))).unwrap();
        report["divergence"]["kld"]["value"].as_f64().unwrap()
    };
    let alone = divergence(&[]);
    let repaired = divergence(&["--sequential", "--chunks", "16", "--text"]);
    assert!(alone < 0.2 && repaired < alone, "{alone} {repaired}");
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    tiny::tiny(TensorType::F16).write(&model);
    calibrate(&model);
    let small = dir.path().join("small.gguf");
    for (structure, pieces) in [
        ("heads = 3", ["`heads` is 3", "1 to 2"]),
        ("ffn = 1.5", ["`ffn` is 1.5", "a fraction"]),
        ("drop = [2]", ["`drop` is 2", "blocks below 2"]),
        ("drop = [0, 1]", ["`drop` is every block", "one that stays"]),
        ("keep = 0.9\nffn = 0.5", ["`keep`", "one or the other"]),
        ("", ["`[structure]` is empty", "`keep`, `ffn`"]),
    ] {
        let sentence = refusal(&mut compress(&model, "f16", structure, &small), 3);
        says(&sentence, &pieces);
        assert!(!small.exists());
    }
    let mut command = dwindle(["compress", "--preset", "k-proj", "--keep", "0.8"]);
    let sentence = refusal(command.arg(&model).arg("-o").arg(&small), 3);
    says(&sentence, &["`[structure]` goes with `quantize` alone"]);
    let gpt2 = dir.path().join("gpt2.gguf");
    tiny::low_rank(Kind::Gpt2, 16).write(&gpt2);
    calibrate(&gpt2);
    let sentence = refusal(&mut compress(&gpt2, "f16", "heads = 1", &small), 3);
    says(&sentence, &["is `gpt2`, expected one of llama"]);
    stdout(&mut compress(&gpt2, "f16", "ffn = 0.5", &small));
    open(&small);
}
