//! Calibration: layer inputs caught in llama.cpp, and the files that are made of them.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use dwindle::architecture;
use dwindle::eval::EvalError;
use dwindle::ggml;
use dwindle::llama::activations::Probe;
use dwindle::llama::context::ContextOptions;
use dwindle::llama::model::{Model, ModelOptions};
use dwindle::measure::{
    CalibrateError, CalibrateOptions, Calibration, CalibrationText, Outputs, calibrate,
};
use dwindle::runtime::identity;
use dwindle::statistics::{Importance, Likeness, Statistics, StatisticsError};
use dwindle_formats::gguf::TensorType;
use tempfile::TempDir;

use crate::common::tiny::{
    EMBD, EXPERTS, FFN, LAYERS, Tiny, USED_EXPERTS, another, batch, mixture, tiny,
};

fn text() -> String {
    (0..700u32)
        .map(|i| char::from(b'a' + (i * i % 23) as u8))
        .collect()
}

fn options() -> CalibrateOptions {
    CalibrateOptions {
        ctx: 64,
        chunks: Some(8),
        threads: Some(2),
        ..CalibrateOptions::default()
    }
}

/// A model on disk and loaded.
struct Case {
    dir: TempDir,
    path: PathBuf,
    model: Model,
}

impl Case {
    fn new(tiny: &Tiny) -> Case {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("tiny.gguf");
        tiny.write(&path);
        let model = Model::load(&path, &ModelOptions::default()).unwrap();
        Case { dir, path, model }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(
        &self,
        options: &CalibrateOptions,
        outputs: Outputs<'_>,
    ) -> Result<Calibration, CalibrateError> {
        let identity = identity(&self.path).unwrap();
        let text = text();
        calibrate(
            &self.model,
            identity,
            CalibrationText {
                words: &text,
                name: "text",
            },
            options,
            outputs,
            &mut |p| {
                assert!(p.done <= p.total && p.pass <= p.passes);
            },
        )
    }

    fn statistics(&self, options: &CalibrateOptions, name: &str) -> (PathBuf, Calibration) {
        let path = self.path(name);
        let outputs = Outputs {
            statistics: Some(&path),
            ..Outputs::default()
        };
        let calibration = self.write(options, outputs).unwrap();
        (path, calibration)
    }

    /// Every input's rows when this text is evaluated in chunks.
    fn inputs(&self, ctx: usize, chunks: usize) -> Vec<Vec<f32>> {
        let mut probe = self.probe(ctx as u32);
        let mut rows = vec![Vec::new(); probe.inputs().len()];
        let wanted = vec![true; rows.len()];
        let mut tokens = self.model.tokenize(&text(), true, false).unwrap();
        for tokens in tokens.chunks_mut(ctx).take(chunks) {
            tokens[0] = self.model.bos().unwrap();
            probe.clear();
            probe
                .run(&batch(tokens), &wanted, &mut |a| {
                    rows[a.input].extend_from_slice(a.values);
                    ControlFlow::Continue(())
                })
                .unwrap();
        }
        rows
    }

    fn probe(&self, ctx: u32) -> Probe<'_> {
        let options = ContextOptions {
            ctx,
            batch: ctx,
            threads: Some(2),
            ..ContextOptions::default()
        };
        Probe::new(&self.model, &options).unwrap()
    }
}

#[test]
fn layers_that_read_the_same_share_an_input() {
    let case = Case::new(&tiny(TensorType::F16));
    let probe = case.probe(64);
    let readers: Vec<Vec<&str>> = probe
        .inputs()
        .iter()
        .map(|i| {
            let mut names: Vec<&str> = i.readers.iter().map(|r| r.weight.as_str()).collect();
            names.sort_unstable();
            names
        })
        .collect();
    assert_eq!(
        readers[..4],
        [
            vec![
                "blk.0.attn_k.weight",
                "blk.0.attn_q.weight",
                "blk.0.attn_v.weight"
            ],
            vec!["blk.0.attn_output.weight"],
            vec!["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"],
            vec!["blk.0.ffn_down.weight"],
        ]
    );
    assert_eq!(readers.len(), 4 * LAYERS as usize + 1);
    assert_eq!(readers.last().unwrap(), &["token_embd.weight"]);
    let widths: Vec<u64> = probe.inputs()[..4].iter().map(|i| i.width as u64).collect();
    assert_eq!(widths, [EMBD, EMBD, EMBD, FFN]);
    assert!(probe.inputs().iter().all(|i| i.slices == 1));
}

#[test]
fn statistics_are_those_of_the_inputs() {
    let case = Case::new(&tiny(TensorType::F16));
    let (path, calibration) = case.statistics(&options(), "s.safetensors");
    assert_eq!(calibration.bytes, path.metadata().unwrap().len());
    let statistics = Statistics::open(&path).unwrap();
    let p = statistics.provenance();
    assert_eq!((p.tokens, p.chunks, p.ctx), (512, 8, 64));
    assert_eq!((p.model.name.as_str(), p.text.as_str()), ("tiny", "text"));
    let inputs = case.inputs(64, 8);
    assert_eq!(statistics.groups().len(), inputs.len());
    for (group, rows) in statistics.groups().iter().zip(&inputs) {
        let n = group.width;
        for weight in &group.weights {
            let gram = statistics.gram(weight, 0).unwrap().unwrap();
            assert_eq!((gram.n, gram.tokens), (n, 512));
            assert_eq!(statistics.diagonal(weight, 0).unwrap().len(), n);
            let dot = |i: usize, j: usize| -> f64 {
                let row = |r: &[f32]| f64::from(r[i]) * f64::from(r[j]);
                rows.chunks(n).map(row).sum::<f64>() / 512.0
            };
            for i in 0..n {
                let exact = dot(i, i);
                let near = |v: f32, e: f64| (f64::from(v) - e).abs() <= 1e-6 * e.abs() + 1e-12;
                assert!(near(statistics.diagonal(weight, 0).unwrap()[i], exact));
                assert!(near(gram.values[i * n + i], exact));
                let j = (i * 7 + 3) % n;
                let scale = (exact * dot(j, j)).sqrt();
                assert!((f64::from(gram.values[i * n + j]) - dot(i, j)).abs() <= 1e-5 * scale);
                assert_eq!(gram.values[i * n + j], gram.values[j * n + i]);
            }
            let mean: f64 = rows.iter().step_by(n).map(|v| f64::from(*v)).sum();
            assert!((f64::from(gram.mean[0]) - mean / 512.0).abs() < 1e-6);
        }
    }
    assert!(statistics.gram("blk.0.attn_q.weight", 1).unwrap().is_none());
    assert!(statistics.gram("blk.9.attn_q.weight", 0).unwrap().is_none());
    assert!(statistics.diagonal("x", 0).is_none());
}

#[test]
fn neither_threads_nor_memory_change_a_byte() {
    let case = Case::new(&tiny(TensorType::F16));
    let (path, calibration) = case.statistics(&options(), "a.safetensors");
    assert_eq!(calibration.passes, 1);
    let expected = std::fs::read(path).unwrap();
    for (threads, memory, several) in [(1, 1 << 30, false), (2, 18 << 20, true), (1, 1, true)] {
        let options = CalibrateOptions {
            threads: Some(threads),
            memory,
            ..options()
        };
        let (path, calibration) = case.statistics(&options, "b.safetensors");
        assert_eq!(calibration.passes > 1, several, "{memory}");
        assert!(
            std::fs::read(path).unwrap() == expected,
            "{threads} {memory}"
        );
    }
}

#[test]
fn contexts_longer_than_a_batch_and_feeds_are_the_same_text() {
    let tiny = tiny(TensorType::F16);
    let case = Case::new(&tiny);
    let options = CalibrateOptions {
        ctx: 600,
        chunks: None,
        ..options()
    };
    let (path, calibration) = case.statistics(&options, "a.safetensors");
    assert_eq!(calibration.provenance.tokens, 600);
    let statistics = Statistics::open(&path).unwrap();
    assert_eq!(statistics.tokens("blk.1.ffn_down.weight", 0), Some(600));
    let fed = Model::load_feed("tiny", tiny.feed(), &ModelOptions::default()).unwrap();
    let again = Case { model: fed, ..case };
    let (other, _) = again.statistics(&options, "b.safetensors");
    assert!(std::fs::read(path).unwrap() == std::fs::read(other).unwrap());
}

#[test]
fn wide_inputs_are_kept_in_blocks() {
    let case = Case::new(&tiny(TensorType::F16));
    let (whole, _) = case.statistics(&options(), "a.safetensors");
    let narrow = CalibrateOptions {
        max_gram_width: 300,
        ..options()
    };
    let (blocks, calibration) = case.statistics(&narrow, "b.safetensors");
    assert_eq!(calibration.groups[3].blocks, [0..256, 256..512]);
    let (whole, blocks) = (
        Statistics::open(&whole).unwrap(),
        Statistics::open(&blocks).unwrap(),
    );
    let name = "blk.1.ffn_down.weight";
    assert!(blocks.gram(name, 0).unwrap().is_none());
    assert_eq!(blocks.diagonal(name, 0), whole.diagonal(name, 0));
    let all = whole.gram(name, 0).unwrap().unwrap();
    for (i, range) in blocks.group(name).unwrap().blocks.iter().enumerate() {
        let block = blocks.gram_block(name, 0, i).unwrap().unwrap();
        assert_eq!(block.n, 256);
        assert_eq!(block.mean, &all.mean[range.clone()]);
        for (row, values) in range.clone().zip(block.values.chunks(block.n)) {
            assert_eq!(values, &all.values[row * all.n..][range.clone()]);
        }
    }
    assert!(blocks.gram_block(name, 0, 2).unwrap().is_none());
    let narrow = whole.gram("blk.1.attn_q.weight", 0).unwrap();
    assert_eq!(blocks.gram("blk.1.attn_q.weight", 0).unwrap(), narrow);
}

#[test]
fn experts_get_the_rows_that_are_routed_to_them() {
    let case = Case::new(&mixture(TensorType::F16));
    let (path, calibration) = case.statistics(&options(), "s.safetensors");
    let statistics = Statistics::open(&path).unwrap();
    let (router, up, gate, down) = (
        "blk.1.ffn_gate_inp.weight",
        "blk.1.ffn_up_exps.weight",
        "blk.1.ffn_gate_exps.weight",
        "blk.1.ffn_down_exps.weight",
    );
    assert_eq!(statistics.group(up), statistics.group(gate));
    let tokens = |name: &str| -> Vec<u64> {
        (0..EXPERTS as usize)
            .map(|e| statistics.tokens(name, e).unwrap())
            .collect()
    };
    assert_eq!(tokens(up), tokens(down));
    assert_eq!(tokens(up).iter().sum::<u64>(), 512 * USED_EXPERTS);
    assert_eq!(
        calibration.unreached.iter().any(|(w, _)| w == down),
        tokens(down).contains(&0)
    );
    // Each row goes to so many experts, so their sums are so many times those of the router.
    let all = statistics.gram(router, 0).unwrap().unwrap();
    let mut sums = vec![0f64; all.values.len()];
    for expert in 0..EXPERTS as usize {
        let gram = statistics.gram(gate, expert).unwrap().unwrap();
        for (sum, v) in sums.iter_mut().zip(gram.values) {
            *sum += f64::from(*v) * gram.tokens as f64;
        }
    }
    let largest = all.values.iter().fold(0f32, |m, v| m.max(v.abs()));
    for (sum, v) in sums.iter().zip(all.values) {
        let expected = f64::from(*v) * (512 * USED_EXPERTS) as f64;
        assert!(
            (sum - expected).abs() <= 1e-3 * f64::from(largest),
            "{sum} {expected}"
        );
    }
    let (source, model) = architecture::open(&case.path).unwrap();
    let likeness = statistics.check_model(&model, source.as_ref()).unwrap();
    assert_eq!(likeness, Likeness::Weights);
}

#[test]
fn importance_goes_both_ways() {
    for tiny in [tiny(TensorType::F16), mixture(TensorType::F16)] {
        let case = Case::new(&tiny);
        let (s, i, alone) = (case.path("s"), case.path("i.gguf"), case.path("alone.gguf"));
        for (statistics, imatrix, output_layer) in
            [(Some(s.as_path()), &i, true), (None, &alone, false)]
        {
            let outputs = Outputs {
                statistics,
                imatrix: Some(imatrix),
                output_layer,
            };
            case.write(&options(), outputs).unwrap();
        }
        let ours = Importance::open(&s).unwrap();
        let theirs = Importance::open(&i).unwrap();
        let blocks_only = Importance::open(&alone).unwrap();
        assert_eq!(theirs.len(), ours.len());
        assert_eq!(blocks_only.len(), ours.len() - 1);
        for tensor in &tiny.layout {
            let row = tensor.shape[0];
            let slices = tensor.shape.iter().skip(2).product::<u64>() as usize;
            if tensor.shape.len() < 2 {
                assert!(!ours.has(&tensor.name, row));
                continue;
            }
            for slice in 0..slices {
                let columns = |i: &Importance| {
                    let columns = i.columns(&tensor.name, row as usize, slice);
                    columns.map(<[f32]>::to_vec)
                };
                let (a, b) = (columns(&ours).unwrap(), columns(&theirs).unwrap());
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * a;
                assert!(a.iter().zip(&b).all(near), "{}", tensor.name);
                if tensor.name != "token_embd.weight" {
                    assert_eq!(columns(&blocks_only).unwrap(), b);
                }
            }
        }
    }
}

/// The model trained a little further: one weight is half a percent larger, and the norms stayed.
fn tuned(ty: TensorType, weight: &str) -> Tiny {
    let mut tiny = tiny(ty);
    let place = tiny.layout.iter().position(|t| t.name == weight).unwrap();
    let data = &mut tiny.data[place];
    let mut values = vec![0f32; tiny.layout[place].shape.iter().product::<u64>() as usize];
    ggml::dequantize(ty, data, &mut values).unwrap();
    values.iter_mut().for_each(|v| *v *= 1.005);
    ggml::quantize(ty, &values, values.len(), None, data).unwrap();
    tiny
}

#[test]
fn statistics_know_their_model() {
    let case = Case::new(&tiny(TensorType::F16));
    let (path, _) = case.statistics(&options(), "s.safetensors");
    let statistics = Statistics::open(&path).unwrap();
    let check = |tiny: &Tiny| {
        let case = Case::new(tiny);
        let (source, model) = architecture::open(&case.path).unwrap();
        statistics.check_model(&model, source.as_ref())
    };
    for ty in [
        TensorType::F16,
        TensorType::F32,
        TensorType::Q8_0,
        TensorType::Q4_K,
    ] {
        assert_eq!(check(&tiny(ty)).unwrap(), Likeness::Weights, "{ty}");
    }
    let problem = |tiny: &Tiny| match check(tiny) {
        Err(StatisticsError::OtherModel { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    for weight in ["blk.1.attn_v.weight", "token_embd.weight"] {
        for ty in [TensorType::F16, TensorType::F32] {
            let said = problem(&tuned(ty, weight));
            assert!(said.contains(&format!("`{weight}`")), "{said}");
        }
    }
    let norms = problem(&another(TensorType::F16));
    assert!(norms.contains("norms"), "{norms}");
    let missing = problem(&mixture(TensorType::F16));
    assert!(missing.contains("has no `blk.0.ffn_"), "{missing}");
}

fn refused(path: &Path) -> String {
    let statistics = match Statistics::open(path) {
        Err(error) => return error.to_string(),
        Ok(statistics) => statistics,
    };
    for group in statistics.groups() {
        if let Err(error) = statistics.gram(group.name(), 0) {
            return error.to_string();
        }
    }
    panic!("damage was not noticed");
}

#[test]
fn damage_is_noticed() {
    let case = Case::new(&tiny(TensorType::F16));
    let (path, _) = case.statistics(&options(), "s.safetensors");
    let good = std::fs::read(&path).unwrap();
    let bad = case.path("bad.safetensors");
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    // Every part of the file: counts, checksums, means, matrices, and the last byte.
    let places = [
        header,
        header + 9 * 8,
        header + 1000,
        good.len() / 2,
        good.len() - 1,
    ];
    for at in places {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        std::fs::write(&bad, &bytes).unwrap();
        assert!(refused(&bad).contains("damaged at"), "{at}");
    }
    for len in [0, 7, 8, 100, header, good.len() - 1] {
        std::fs::write(&bad, &good[..len]).unwrap();
        refused(&bad);
    }
    // The description: any changed letter is noticed, and none ends in a panic.
    for at in (8..header).step_by(13) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        if bytes[at] == b' ' || good[at] == b' ' {
            continue; // padding
        }
        std::fs::write(&bad, &bytes).unwrap();
        refused(&bad);
    }
    let foreign = case.path("foreign.safetensors");
    std::fs::write(&foreign, b"\x02\0\0\0\0\0\0\0{}").unwrap();
    assert!(refused(&foreign).contains("holds no statistics"));
    assert!(refused(&case.path).contains("not a safetensors file"));
    assert!(Statistics::open(&case.path("none")).is_err());
    assert!(Importance::open(&foreign).is_err());
}

#[test]
fn what_can_not_be_measured_leaves_nothing_behind() {
    let case = Case::new(&tiny(TensorType::F16));
    let path = case.path("s.safetensors");
    let outputs = Outputs {
        statistics: Some(&path),
        ..Outputs::default()
    };
    let long = CalibrateOptions {
        ctx: 2048,
        ..options()
    };
    let error = case.write(&long, outputs).unwrap_err();
    assert!(
        matches!(error, CalibrateError::Text(EvalError::TextTooShort { .. })),
        "{error}"
    );

    let mut damaged = tiny(TensorType::F16);
    let norm = damaged
        .layout
        .iter()
        .position(|l| l.name == "blk.1.ffn_norm.weight");
    damaged.data[norm.unwrap()][..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let case = Case::new(&damaged);
    let path = case.path("s.safetensors");
    let outputs = Outputs {
        statistics: Some(&path),
        ..Outputs::default()
    };
    let error = case.write(&options(), outputs).unwrap_err();
    assert!(error.to_string().contains("`blk.1.ffn_"), "{error}");
    assert_eq!(std::fs::read_dir(case.dir.path()).unwrap().count(), 1);
}
