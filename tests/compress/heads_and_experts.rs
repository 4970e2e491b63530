//! Models whose heads get shorter, that lose experts, or blocks that a text chooses, and say the same
//! afterwards where that was redundant.

use std::path::Path;

use dwindle_formats::gguf::{TensorType, read_header};
use serde_json::Value;
use tempfile::tempdir;

use crate::common::folder::HEAD_DIM;
use crate::common::program::{dwindle, fixture, refusal, says, stdout};
use crate::common::smaller::{
    calibrate, change, compress, difference, each_family, metadata, open,
};
use crate::common::tiny;
use crate::common::tiny::{EMBD, EXPERTS, Kind};

/// Elements of a head that are not redundant.
const HALF: usize = HEAD_DIM / 2;

/// Half of each value's elements mix the others, and only every second rotary pair has keys.
fn redundant_heads(name: &str, shape: &[usize], values: &mut [f32]) {
    let columns = if shape.len() == 1 { 1 } else { shape[1] };
    if name.contains("v_proj") {
        for c in 0..columns {
            let (a, b) = (values[c], values[columns + c]);
            values[2 * columns + c] = a - b;
            values[3 * columns + c] = 0.5 * a + 2.0 * b;
        }
    }
    if name.contains("k_proj") {
        // Halves: the second pair is the second and the fourth row.
        for row in [1, 3] {
            values[row * columns..(row + 1) * columns].fill(0.0);
        }
    }
}

fn length(file: &Path, key: &str) -> Option<u64> {
    metadata(file, key).and_then(|v| v.as_u64())
}

#[test]
fn values_lose_the_directions_that_others_have() {
    let dir = tempdir().unwrap();
    for (name, model, before) in each_family(dir.path(), redundant_heads) {
        let small = dir.path().join("small.gguf");
        let mut command = compress(&model, "f32", &format!("value_length = {HALF}"), &small);
        let reason = match name {
            "GraniteForCausalLM" => "`granite` is none of llama, qwen2, qwen3",
            "MixtralForCausalLM" => "`step35` has no `blk.0.ffn_",
            "Qwen3MoeForCausalLM" => "`qwen3moe` is none of",
            _ => {
                stdout(command.arg("--json"));
                let off = difference(&before, &small);
                assert!(off < 1e-3, "{name}: {off}");
                let keys = length(&small, "step35.attention.key_length");
                let values = length(&small, "step35.attention.value_length");
                assert_eq!((keys, values), (Some(HEAD_DIM as u64), Some(HALF as u64)));
                stdout(dwindle(["verify"]).arg(&small));
                std::fs::remove_file(&small).unwrap();
                continue;
            }
        };
        says(
            &refusal(&mut command, 3),
            &["for keys and 2 for values", reason],
        );
    }
}

#[test]
fn heads_lose_the_rotary_pairs_that_give_nothing() {
    let dir = tempdir().unwrap();
    for (name, model, before) in each_family(dir.path(), redundant_heads) {
        let small = dir.path().join("small.gguf");
        let lengths = format!("value_length = {HALF}\nkey_length = {HALF}");
        let mut command = compress(&model, "f32", &lengths, &small);
        command.arg("--json").arg("--text");
        command.arg(fixture("kjv-calibration.txt"));
        let architecture = match name {
            "LlamaForCausalLM" | "MistralForCausalLM" | "MixtralForCausalLM" => "llama",
            "GraniteForCausalLM" => "granite",
            "Qwen2ForCausalLM" => {
                says(&refusal(&mut command, 3), &["`qwen2` has no `rope_freqs`"]);
                continue;
            }
            _ => {
                let reasons = ["beside `blk.0.attn_k_norm.weight`", "no norm of queries"];
                says(&refusal(&mut command, 3), &reasons);
                continue;
            }
        };
        let report: Value = serde_json::from_str(&stdout(&mut command)).unwrap();
        let cache = |key: &str| report["structure"][key].as_u64().unwrap();
        let bytes = cache("cache_bytes_per_token");
        assert_eq!(cache("source_cache_bytes_per_token"), 2 * bytes);
        let off = difference(&before, &small);
        assert!(off < 1e-3, "{name}: {off}");
        for key in [
            "attention.key_length",
            "attention.value_length",
            "rope.dimension_count",
        ] {
            let key = format!("{architecture}.{key}");
            assert_eq!(length(&small, &key), Some(HALF as u64), "{name}");
        }
        let mut command = dwindle(["export", "--format", "hf"]);
        command.arg(&small).arg("--checkpoint").arg(&model);
        let sentence = refusal(command.arg("-o").arg(dir.path().join("back")), 3);
        says(&sentence, &["keys of 2 and values of 2", "4 of each"]);
        std::fs::remove_file(&small).unwrap();
    }
}

#[test]
fn pairs_and_values_leave_a_wider_head_too_and_in_sequence() {
    let dir = tempdir().unwrap();
    let mut tiny = tiny::low_rank(Kind::Untied, 64);
    // Only the first 24 of 32 pairs of neighbours have keys, only 48 of 64 elements values.
    let head = EMBD as usize / 4;
    let stays = head * 3 / 4;
    for block in 0..2 {
        for name in ["attn_k", "attn_v"] {
            change(&mut tiny, &format!("blk.{block}.{name}.weight"), |v| {
                for rows in v.chunks_mut(head * EMBD as usize) {
                    rows[stays * EMBD as usize..].fill(0.0);
                }
            });
        }
    }
    let model = dir.path().join("model.gguf");
    tiny.write(&model);
    calibrate(&model);
    let small = dir.path().join("small.gguf");
    let lengths = format!("key_length = {stays}\nvalue_length = {stays}");
    for options in [
        &["--text"][..],
        &["--sequential", "--chunks", "4", "--text"],
    ] {
        let mut command = compress(&model, "f32", &lengths, &small);
        stdout(command.args(options).arg(fixture("kjv-calibration.txt")));
        let off = difference(&model, &small);
        assert!(off < 1e-3, "{options:?}: {off}");
        assert_eq!(
            length(&small, "llama.attention.key_length"),
            Some(stays as u64)
        );
        let header = read_header(&std::fs::read(&small).unwrap()).unwrap();
        let factors = header
            .tensors
            .iter()
            .find(|t| t.name == "rope_freqs.weight");
        assert_eq!(factors.unwrap().shape, [stays as u64 / 2]);
    }
}

#[test]
fn experts_that_no_token_reaches_leave() {
    let dir = tempdir().unwrap();
    let mut tiny = tiny::mixture(TensorType::F32);
    // The first element of the stream is large and stays, and the router's last two rows dislike it.
    change(&mut tiny, "token_embd.weight", |v| {
        v.iter_mut().step_by(EMBD as usize).for_each(|v| *v = 4.0);
    });
    for block in 0..2 {
        change(&mut tiny, &format!("blk.{block}.attn_output.weight"), |v| {
            v[..EMBD as usize].fill(0.0);
        });
        change(
            &mut tiny,
            &format!("blk.{block}.ffn_down_exps.weight"),
            |v| {
                let expert = v.len() / EXPERTS as usize;
                v.chunks_mut(expert)
                    .for_each(|e| e[..expert / EMBD as usize].fill(0.0));
            },
        );
        change(
            &mut tiny,
            &format!("blk.{block}.ffn_gate_inp.weight"),
            |v| {
                // Experts 0 and 2 are never among the two that are chosen.
                v[0] = -10.0;
                v[2 * EMBD as usize] = -10.0;
            },
        );
    }
    let model = dir.path().join("model.gguf");
    tiny.write(&model);
    calibrate(&model);
    let small = dir.path().join("small.gguf");
    for (count, most) in [(3, 1e-5), (2, 1e-5)] {
        stdout(&mut compress(
            &model,
            "f32",
            &format!("experts = {count}"),
            &small,
        ));
        assert!(difference(&model, &small) < most, "{count}");
        assert_eq!(length(&small, "llama.expert_count"), Some(count));
    }
    stdout(&mut compress(&model, "q8_0", "experts = 1", &small));
    assert_eq!(length(&small, "llama.expert_used_count"), Some(1));
    open(&small);
}

#[test]
fn a_text_names_the_block_that_changes_least() {
    let dir = tempdir().unwrap();
    let mut tiny = tiny::tiny(TensorType::F32);
    for name in ["blk.1.attn_output.weight", "blk.1.ffn_down.weight"] {
        change(&mut tiny, name, |v| v.fill(0.0));
    }
    let model = dir.path().join("model.gguf");
    tiny.write(&model);
    let small = dir.path().join("small.gguf");
    calibrate(&model);
    let mut command = compress(&model, "f32", "drop = 1", &small);
    command.arg("--json").arg("--text");
    let report = stdout(command.arg(fixture("kjv-calibration.txt")));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["structure"]["dropped"], serde_json::json!([1]));
    assert!(difference(&model, &small) < 1e-5);
}

#[test]
fn what_cannot_be_is_refused() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    tiny::tiny(TensorType::F16).write(&model);
    calibrate(&model);
    let small = dir.path().join("small.gguf");
    for (structure, pieces) in [
        (
            "value_length = 3",
            ["`value_length` is 3", "an even number of 2 to 64"],
        ),
        (
            "key_length = 66",
            ["`key_length` is 66", "an even number of 2 to 64"],
        ),
        ("experts = 2", ["no stack of experts", "omit `experts`"]),
        (
            "experts = 2\nffn = 0.5",
            ["`experts` is given beside", "one after the other"],
        ),
        ("drop = 2", ["`drop` is 2", "less than 2"]),
    ] {
        let sentence = refusal(&mut compress(&model, "f16", structure, &small), 3);
        says(&sentence, &pieces);
    }
    for structure in ["key_length = 32", "drop = 1"] {
        let sentence = refusal(&mut compress(&model, "f16", structure, &small), 2);
        says(
            &sentence,
            &["is decided by what the model does with a text", "`--text`"],
        );
    }
    let mut command = compress(&model, "f16", "key_length = 32", &small);
    let sentence = refusal(command.arg("--text").arg(fixture("kjv-calibration.txt")), 3);
    says(
        &sentence,
        &[
            "32 for keys and 64 for values",
            "`step35` has no `rope_freqs.weight`",
        ],
    );
    let mut command = compress(&model, "f16", "heads = 1", &small);
    let sentence = refusal(command.arg("--text").arg(fixture("kjv-calibration.txt")), 2);
    says(&sentence, &["`--text` goes with a target"]);
    assert!(!small.exists());
}
