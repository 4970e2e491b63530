//! A model that is run block by block gives what it gives as a whole.

use std::ops::ControlFlow;
use std::path::Path;

use dwindle::Placement;
use dwindle::blockwise::{
    Block, Checkpoint, Cut, Original as _, Runner, Stream, check, streams_of,
};
use dwindle::llama::activations::Probe;
use dwindle::llama::context::{BatchToken, ContextOptions};
use dwindle::llama::model::{Model, ModelOptions};
use dwindle::plan::Subject;
use dwindle_formats::gguf::TensorType;
use tempfile::tempdir;

use crate::common::program::{dwindle, stdout};
use crate::common::record::Record;
use crate::common::tiny::{Kind, low_rank, mixture};

/// Tokens of a sequence, and sequences.
const CTX: usize = 24;
const SEQUENCES: usize = 2;

/// What reads the last norm.
const OUTPUTS: [&str; 2] = ["output.weight", "token_embd.weight"];

fn tokens() -> Vec<i32> {
    (0..CTX * SEQUENCES).map(|i| (i * 7 % 23) as i32).collect()
}

/// What the output layer reads in the whole model.
fn whole(path: &Path) -> Vec<f32> {
    dwindle::llama::backend::init();
    let model = Model::load(path, &ModelOptions::default()).unwrap();
    let options = ContextOptions {
        ctx: CTX as u32,
        sequences: SEQUENCES as u32,
        batch: (CTX * SEQUENCES) as u32,
        ubatch: (CTX * SEQUENCES) as u32,
        ..ContextOptions::default()
    };
    let mut probe = Probe::new(&model, &options).unwrap();
    let is_output = |name: &str| OUTPUTS.contains(&name);
    let wanted: Vec<bool> = probe.inputs().iter().map(|i| is_output(i.name())).collect();
    let batch: Vec<BatchToken> = tokens()
        .into_iter()
        .enumerate()
        .map(|(i, token)| BatchToken {
            token,
            position: (i % CTX) as i32,
            sequence: (i / CTX) as i32,
            logits: true,
        })
        .collect();
    let mut seen = Vec::new();
    let mut keep = |rows: &[f32]| seen.extend_from_slice(rows);
    probe
        .run(&batch, &wanted, &mut |activation| {
            keep(activation.values);
            ControlFlow::Continue(())
        })
        .unwrap();
    seen
}

/// The same, block by block.
fn by_blocks(path: &Path, scratch: Option<&Path>) -> Vec<f32> {
    let (source, model) = dwindle::architecture::open(path).unwrap();
    let subject = Subject::unmeasured(&model, source.as_ref());
    let cut = Cut {
        ctx: CTX,
        threads: 2,
        placement: Placement::cpu(),
    };
    let mut stream: Stream = streams_of(&subject, &tokens(), scratch).unwrap();
    let source = Checkpoint::new(subject);
    let key = format!("{}.block_count", model.architecture);
    let blocks = model.metadata.get(&key).unwrap().as_u64().unwrap() as u32;
    let mut seen = Vec::new();
    for number in 0..blocks {
        let block = Block::new(&model, number);
        let own = |i, ty| source.bytes(i, ty);
        let loaded = block.load(&cut, |i| source.ty(i), &own);
        let loaded = loaded.unwrap();
        let mut runner = Runner::new(&loaded, &block, &cut).unwrap();
        if number + 1 < blocks {
            runner.advance(&mut stream).unwrap();
            continue;
        }
        let inputs = runner.inputs().iter();
        let wanted: Vec<bool> = inputs.map(|i| OUTPUTS.contains(&i.name())).collect();
        for batch in cut.batches(0..SEQUENCES) {
            let rows = stream.read(batch.rows.start, batch.rows.len()).unwrap();
            let keep = &mut |rows: &[f32]| seen.extend_from_slice(rows);
            runner
                .run(&batch, &rows, &wanted, &mut |activation| {
                    keep(activation.values);
                    Ok(())
                })
                .unwrap();
        }
    }
    seen
}

#[test]
fn blocks_of_every_family_give_what_the_model_gives() {
    let dir = tempdir().unwrap();
    let (folder, file) = (dir.path().join("tiny"), dir.path().join("x.gguf"));
    let mut wrong = Vec::new();
    for record in Record::decoders() {
        record.write(&folder);
        let mut command = dwindle(["compress", "--preset", "f32"]);
        stdout(command.arg(&folder).arg("-o").arg(&file));
        let (source, model) = dwindle::architecture::open(&file).unwrap();
        if check(&model).is_err() {
            assert_eq!(record.name, "bloom");
            continue;
        }
        drop(source);
        let (expected, found) = (whole(&file), by_blocks(&file, None));
        assert_eq!(found.len(), expected.len(), "{}", record.name);
        let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let apart = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let apart = apart.fold(0f32, f32::max) / largest;
        // Keys and values are in F16.
        if apart.is_nan() || apart > 1e-3 {
            wrong.push(format!("{}: {apart} apart", record.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn blocks_one_by_one_give_what_the_model_gives() {
    let dir = tempdir().unwrap();
    for (name, tiny) in [
        ("tied", low_rank(Kind::Tied, 64)),
        ("untied", low_rank(Kind::Untied, 64)),
        ("qwen3", low_rank(Kind::Qwen3, 64)),
        ("gpt2", low_rank(Kind::Gpt2, 64)),
        ("mixture", mixture(TensorType::F32)),
    ] {
        let path = dir.path().join(format!("{name}.gguf"));
        tiny.write(&path);
        let expected = whole(&path);
        for scratch in [None, Some(dir.path())] {
            let found = by_blocks(&path, scratch);
            assert_eq!(found.len(), expected.len(), "{name}");
            let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (a, b) in found.iter().zip(&expected) {
                assert!((a - b).abs() < 1e-4 * largest, "{name}: {a} and {b}");
            }
        }
    }
}
