//! Factors that are executed give what their product gives.

use std::path::{Path, PathBuf};

use dwindle::Placement;
use dwindle::ggml;
use dwindle::llama::context::{BatchToken, Context, ContextOptions, FlashAttention};
use dwindle::llama::device::weights::{Contraction, Link, Operand, Weights};
use dwindle::llama::feed::BoxError;
use dwindle::llama::model::{LlamaError, Model, ModelOptions};
use dwindle::runtime::{Factors, load};
use dwindle_formats::container::Container;
use dwindle_formats::gguf::{TensorLayout, TensorType};
use tempfile::{TempDir, tempdir};

use crate::common::program::{checkpoint, dwindle, fixture, refusal, stdout};
use crate::common::spoilt::sign;
use crate::common::tiny;
use crate::common::tiny::{Kind, Tiny, VOCAB, batch, low_rank};

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
        assert!(executed.used_whole().is_empty(), "{kind:?}");
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
    let flash = |flash_attention| ContextOptions {
        flash_attention,
        ..context()
    };
    let quantized = ContextOptions {
        cache_type: TensorType::Q8_0,
        ..flash(FlashAttention::On)
    };
    let plain = ModelOptions::default();
    let partly = ModelOptions {
        placement: Placement {
            layers: Some(1),
            ..Placement::default()
        },
        ..ModelOptions::default()
    };
    for kind in [Kind::Tied, Kind::Untied, Kind::Qwen3, Kind::Mixture] {
        let (_dir, dense, factored) = pair(kind);
        for (model, context) in [
            (&plain, flash(FlashAttention::On)),
            (&plain, flash(FlashAttention::Off)),
            (&plain, quantized.clone()),
            (&partly, context()),
        ] {
            let expected = logits(&open(&dense, model, Factors::Executed), &context);
            let found = logits(&open(&factored, model, Factors::Executed), &context);
            same(&found, &expected, VOCAB as usize, 0.02);
        }
    }
}

#[test]
fn adapters_are_added_to_executed_factors() {
    let (dir, dense, factored) = pair(Kind::Untied);
    let adapter = dir.path().join("adapter.gguf");
    Tiny::adapter().write(&adapter);
    let adapted = ModelOptions {
        lora: vec![adapter],
        ..ModelOptions::default()
    };
    let run = |file: &Path, model: &ModelOptions| {
        logits(&open(file, model, Factors::Executed), &context())
    };
    let found = run(&factored, &adapted);
    same(&found, &run(&dense, &adapted), VOCAB as usize, 0.02);
    let without = run(&factored, &ModelOptions::default());
    let largest = found.iter().zip(&without).map(|(a, b)| (a - b).abs());
    assert!(largest.fold(0.0, f32::max) > 0.1);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of forms")]
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
        assert!(executed.used_whole().is_empty(), "{rule}");
        let (found, expected) = (logits(&executed, &context()), logits(&product, &context()));
        let vocab = product.n_vocab();
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let off = off.fold(0.0, f32::max);
        assert!(off < 0.05, "{rule}: {off}");
        assert_eq!(found.len(), 64 * vocab);
    }
}

#[test]
fn factors_that_the_architecture_has_no_place_for_are_refused() {
    let dir = tempdir().unwrap();
    type Change = fn(&mut Tiny);
    let changes: [(&str, Change); 3] = [
        ("a tensor too many", |tiny| {
            let (layout, data) = (tiny.layout[2].clone(), tiny.data[2].clone());
            tiny.layout.push(TensorLayout {
                name: "blk.0.ffn_norm_1.weight".into(),
                ..layout
            });
            tiny.data.push(data);
        }),
        ("another shape", |tiny| {
            let at = tiny.layout.iter().position(|t| t.name.contains("attn_q."));
            tiny.layout[at.unwrap()].shape[1] /= 2;
            let data = &mut tiny.data[at.unwrap()];
            data.truncate(data.len() / 2);
        }),
        ("a tensor too few", |tiny| {
            let at = tiny
                .layout
                .iter()
                .position(|t| t.name.contains("ffn_down."));
            tiny.layout.remove(at.unwrap());
            tiny.data.remove(at.unwrap());
        }),
    ];
    let rule = format!("[[rule]]\n{ROLES}method = \"svd\"\nrank = 32");
    for (what, change) in changes {
        let (model, file) = (dir.path().join("model.gguf"), dir.path().join("x.dwn"));
        let mut tiny = low_rank(Kind::Untied, RANK);
        change(&mut tiny);
        tiny.write(&model);
        compress(&model, &rule, None, &file);
        let mut run = dwindle(["run", "-n", "2", "-p", "a"]);
        let sentence = refusal(run.arg(&file), 3);
        assert!(
            sentence.contains("llama.cpp can't load"),
            "{what}: {sentence}"
        );
    }
}

/// Positions are looked up, and this device was told of products alone.
#[test]
fn a_weight_that_is_used_as_no_chain_can_be_is_named_and_not_computed() {
    let tiny = low_rank(Kind::Gpt2, RANK);
    let position = |name: &str| tiny.layout.iter().position(|t| t.name == name).unwrap();
    let places = [
        position("position_embd.weight"),
        position("blk.0.ffn_up.weight"),
    ];
    let mut weights = Weights::default();
    for (operand, place) in places.into_iter().enumerate() {
        let layout = &tiny.layout[place];
        weights.operands.push(Operand {
            name: layout.name.clone(),
            ty: layout.ty,
            shape: layout.shape.clone(),
        });
        let contraction = Contraction {
            branches: vec![vec![Link::Matrix(operand)]],
            rows: None,
        };
        weights
            .contractions
            .insert(layout.name.clone(), contraction);
    }
    let bytes = places.map(|place| tiny.data[place].clone());
    let fetch = Box::new(move |operand: usize| Ok(bytes[operand].clone()));
    let options = ModelOptions::default();
    let model = Model::load_contracted("tiny", tiny.feed(), weights, fetch, &options).unwrap();
    let mut context = Context::new(&model, &context()).unwrap();
    assert_eq!(model.used_whole(), ["position_embd.weight"]);
    let error = context.decode(&batch(&[1, 70])).unwrap_err();
    assert!(matches!(error, LlamaError::Decode { .. }), "{error}");
}

#[test]
fn an_operand_that_cant_be_made_ends_loading_with_its_error() {
    let tiny = low_rank(Kind::Tied, RANK);
    let name = "blk.0.ffn_up.weight";
    let layout = tiny.layout.iter().find(|t| t.name == name).unwrap();
    type Make = fn(usize) -> Result<Vec<u8>, BoxError>;
    let fetches: [(&str, Make); 3] = [
        ("disk gone", |_| Err("disk gone".into())),
        ("has 3 bytes", |_| Ok(vec![0; 3])),
        ("failed unexpectedly", |_| panic!("boom")),
    ];
    for (expected, fetch) in fetches {
        let operand = Operand {
            name: format!("{name}.a"),
            ty: layout.ty,
            shape: layout.shape.clone(),
        };
        let contraction = Contraction {
            branches: vec![vec![Link::Matrix(0)]],
            rows: None,
        };
        let weights = Weights {
            operands: vec![operand],
            contractions: [(name.to_string(), contraction)].into(),
        };
        let options = ModelOptions::default();
        let loaded =
            Model::load_contracted("tiny", tiny.feed(), weights, Box::new(fetch), &options);
        let error = loaded.unwrap_err();
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
        let chain: Vec<String> = causes.map(ToString::to_string).collect();
        assert!(chain.join(": ").contains(expected), "{chain:?}");
    }
}

#[test]
fn factors_are_replaced_and_put_back() {
    let (_dir, _, factored) = pair(Kind::Untied);
    let model = open(&factored, &ModelOptions::default(), Factors::Executed);
    let before = logits(&model, &context());
    let weight = "blk.1.ffn_up.weight";
    let bytes = std::fs::read(&factored).unwrap();
    let container = Container::read(&bytes).unwrap();
    let part = container
        .parts_of(container.index_of(weight).unwrap())
        .start;
    let decoded = container.decode(&bytes, part).unwrap();
    let mut values = vec![0f32; decoded.len() / 2];
    ggml::dequantize(TensorType::F16, &decoded, &mut values).unwrap();

    let zeros = vec![0f32; values.len()];
    model.replace(&format!("{weight}.a"), &zeros).unwrap();
    assert_ne!(logits(&model, &context()), before);
    model.replace(&format!("{weight}.a"), &values).unwrap();
    assert_eq!(logits(&model, &context()), before);

    let refused = |name: &str, len: usize| model.replace(name, &vec![0f32; len]).unwrap_err();
    assert!(
        refused(weight, 8)
            .to_string()
            .contains("computed with factors")
    );
    assert!(
        refused(&format!("{weight}.a"), 8)
            .to_string()
            .contains("elements, not 8")
    );
    assert!(
        refused("blk.9.ffn_up.weight", 8)
            .to_string()
            .contains("no such weight")
    );
}

#[test]
fn a_state_is_kept_and_texts_run_side_by_side() {
    let (_dir, dense, factored) = pair(Kind::Tied);
    let tokens = batch(&[1, 70, 71, 72, 73, 74, 75, 76]);
    let two = ContextOptions {
        sequences: 2,
        ..context()
    };
    let run = |file: &Path| {
        let model = open(file, &ModelOptions::default(), Factors::Executed);
        let mut first = Context::new(&model, &context()).unwrap();
        first.decode(&tokens[..5]).unwrap();
        let state = first.state();
        first.decode(&tokens[5..]).unwrap();
        let expected = first.logits().to_vec();
        let mut second = Context::new(&model, &context()).unwrap();
        second.restore(&state).unwrap();
        second.decode(&tokens[5..]).unwrap();
        assert_eq!(second.logits(), expected);
        assert!(second.restore(&state[..state.len() / 2]).is_err());

        let mut both = Context::new(&model, &two).unwrap();
        let mut side_by_side = tokens.clone();
        for token in &tokens {
            side_by_side.push(BatchToken {
                sequence: 1,
                token: token.token + 100,
                ..*token
            });
        }
        both.decode(&side_by_side).unwrap();
        both.logits().to_vec()
    };
    same(&run(&factored), &run(&dense), VOCAB as usize, 0.02);
}

#[test]
fn quantized_factors_of_everything_give_what_their_product_gives() {
    let dir = tempdir().unwrap();
    let (model, file) = (dir.path().join("model.gguf"), dir.path().join("x.dwn"));
    for kind in [Kind::Tied, Kind::Untied, Kind::Mixture] {
        low_rank(kind, RANK).write(&model);
        for ty in ["q8_0", "q4_0"] {
            // Norms apart, all are quantized: as factors, or as they are.
            let rule = format!("[[rule]]\n{ROLES}method = \"svd\"\nrank = {RANK}\ntype = \"{ty}\"");
            let rest = "[[rule]]\nroles = [\"attn_q\", \"ffn_up_exps\"]\ntype = \"q4_0\"";
            compress(&model, &format!("{rule}\n{rest}"), None, &file);
            let options = ModelOptions::default();
            let product = open(&file, &options, Factors::MultipliedOut);
            let executed = open(&file, &options, Factors::Executed);
            let (found, expected) = (logits(&executed, &context()), logits(&product, &context()));
            let square = |v: f32| f64::from(v) * f64::from(v);
            let off: f64 = found
                .iter()
                .zip(&expected)
                .map(|(a, b)| square(a - b))
                .sum();
            let all: f64 = expected.iter().map(|v| square(*v)).sum();
            // ggml rounds the activations of quantized products to 8 bits.
            assert!(
                (off / all).sqrt() < 0.05,
                "{kind:?} {ty}: {}",
                (off / all).sqrt()
            );
        }
    }
}

/// A file whose digests are right and whose factors are of a type that nothing multiplies with.
#[test]
fn factors_of_integers_are_refused() {
    let dir = tempdir().unwrap();
    let (model, file) = (dir.path().join("model.gguf"), dir.path().join("x.dwn"));
    low_rank(Kind::Untied, RANK).write(&model);
    let rule = format!("[[rule]]\n{ROLES}method = \"svd\"\nrank = {RANK}\ntype = \"f32\"");
    compress(&model, &rule, None, &file);
    let good = std::fs::read(&file).unwrap();
    for name in ["blk.0.ffn_up.weight.a", "token_embd.weight.b"] {
        let mut bytes = good.clone();
        let find = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).position(|w| w == text);
        let entry = format!("\"name\":\"{name}\",\"type\":\"F32\"");
        let at = find(&bytes, entry.as_bytes()).unwrap() + entry.len() - 4;
        bytes[at] = b'I';
        // In GGUF's list, behind the name and two dimensions; not there where it is compressed.
        let mut listed = (name.len() as u64).to_le_bytes().to_vec();
        listed.extend(name.as_bytes());
        let at = find(&bytes, &listed).unwrap() + listed.len() + 4 + 16;
        if bytes[at..at + 4] == [0; 4] {
            bytes[at] = 26;
        }
        sign::sign(&mut bytes);
        let container = Container::read(&bytes).unwrap();
        let part = container.plan.parts().find(|p| p.name == name).unwrap();
        assert_eq!(part.ty.name(), "I32");
        std::fs::write(&file, &bytes).unwrap();
        let mut run = dwindle(["run", "-n", "2", "-p", "a"]);
        let sentence = refusal(run.arg(&file), 3);
        assert!(sentence.contains("I32"), "{name}: {sentence}");
    }
}
