//! Models run in llama.cpp: loaded from files and from feeds, generating, evaluated.

use std::ops::ControlFlow;
use std::path::PathBuf;

use dwindle::Placement;
use dwindle::eval::{
    EvalError, EvalOptions, Evaluation, Reference, SpeedOptions, cache_key, cache_matches, compare,
    perplexity, speed, write_reference,
};
use dwindle::ggml;
use dwindle::llama::context::{BatchToken, Context, ContextOptions};
use dwindle::llama::feed::{Produce, TensorFeed};
use dwindle::llama::generate::{Sampling, Stop, generate};
use dwindle::llama::model::{LlamaError, Model, ModelOptions, Token};
use dwindle_formats::gguf::TensorType;
use tempfile::TempDir;

use crate::common::tiny::{CTX, VOCAB, tiny};

fn load(ty: TensorType) -> Model {
    Model::load_feed("tiny", tiny(ty).feed(), &ModelOptions::default()).unwrap()
}

fn on_disk(ty: TensorType) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny(ty).write(&path);
    (dir, path)
}

fn context(model: &Model) -> Context<'_> {
    let options = ContextOptions {
        ctx: 64,
        batch: 32,
        threads: Some(2),
        ..ContextOptions::default()
    };
    Context::new(model, &options).unwrap()
}

fn logits(model: &Model, tokens: &[Token]) -> Vec<f32> {
    let mut context = context(model);
    let batch: Vec<BatchToken> = tokens
        .iter()
        .enumerate()
        .map(|(i, token)| BatchToken {
            token: *token,
            position: i as i32,
            sequence: 0,
            logits: i % 2 == 1,
        })
        .collect();
    context.decode(&batch).unwrap();
    context.logits().to_vec()
}

fn text() -> String {
    (0..400u32)
        .map(|i| char::from(b'a' + (i * i % 23) as u8))
        .collect()
}

fn options() -> EvalOptions {
    EvalOptions {
        ctx: 64,
        batch: 192,
        threads: Some(2),
        ..EvalOptions::default()
    }
}

#[test]
fn a_feed_and_a_file_give_the_same_logits() {
    for ty in [
        TensorType::F32,
        TensorType::F16,
        TensorType::Q8_0,
        TensorType::Q4_K,
    ] {
        let (_dir, path) = on_disk(ty);
        let tokens = [1, 70, 71, 72, 73, 74];
        let expected = logits(
            &Model::load(&path, &ModelOptions::default()).unwrap(),
            &tokens,
        );
        assert_eq!(expected.len(), 3 * VOCAB as usize);
        assert!(expected.iter().all(|l| l.is_finite()));
        assert_eq!(logits(&load(ty), &tokens), expected, "{ty}");
    }
}

#[test]
fn a_feeds_error_is_the_callers_error() {
    let tiny = tiny(TensorType::F16);
    let produce: Produce<'_> = Box::new(|index, out| {
        if index == 5 {
            return Err("chunk 3 has digest x, expected y".into());
        }
        out.extend_from_slice(&tiny.data[index]);
        Ok(())
    });
    let feed = TensorFeed::new(&tiny.metadata, tiny.layout.clone(), produce).unwrap();
    let error = Model::load_feed("a.dwn", feed, &ModelOptions::default()).unwrap_err();
    let chain: Vec<String> =
        std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source())
            .map(ToString::to_string)
            .collect();
    let name = &tiny.layout[5].name;
    assert_eq!(chain[0], "can't load `a.dwn`");
    assert_eq!(chain[1], format!("can't provide tensor `{name}`"));
    assert_eq!(chain[2], "chunk 3 has digest x, expected y");
}

#[test]
fn what_is_no_model_is_refused_with_llama_cpps_words() {
    let (_dir, path) = on_disk(TensorType::F16);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let error = Model::load(&path, &ModelOptions::default()).unwrap_err();
    assert!(error.to_string().contains("tiny.gguf"), "{error}");
    assert!(!error.to_string().contains("no reason"), "{error}");
    let options = ModelOptions {
        placement: Placement {
            devices: Some(vec!["CUDA9".into()]),
            ..Placement::default()
        },
        ..ModelOptions::default()
    };
    let error = Model::load(&path, &options).unwrap_err();
    assert!(matches!(error, LlamaError::Device { .. }), "{error}");
}

#[test]
fn tokens_and_pieces() {
    let model = load(TensorType::F16);
    assert_eq!(model.n_vocab() as u64, VOCAB);
    assert_eq!((model.bos(), model.eos()), (Some(1), Some(2)));
    assert!(model.add_bos() && !model.add_eos() && model.is_end(2));
    let tokens = model.tokenize("ab é\0", true, false).unwrap();
    assert_eq!(tokens[0], 1);
    let bytes: Vec<u8> = tokens
        .iter()
        .flat_map(|t| model.piece(*t, false).unwrap())
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap().trim_start(), "ab é\0");
    assert!(model.piece(-1, false).unwrap().is_empty());
    assert!(model.piece(1 << 30, false).unwrap().is_empty());
}

#[test]
fn a_chat_is_put_into_the_models_own_template() {
    let model = load(TensorType::F16);
    let chat = model.chat_prompt(&[("system", "Be brief."), ("user", "Hi")]);
    let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(chat.unwrap(), expected);
    let mut bare = tiny(TensorType::F16);
    bare.metadata
        .set("tokenizer.chat_template", "{{ unheard_of }}");
    let model = Model::load_feed("tiny", bare.feed(), &ModelOptions::default()).unwrap();
    let error = model.chat_prompt(&[("user", "Hi")]).unwrap_err();
    assert!(error.to_string().contains("does not know"), "{error}");
}

#[test]
fn generation_is_repeatable_and_bounded() {
    let model = load(TensorType::Q8_0);
    let mut context = context(&model);
    let mut run = |n: usize, sampling: &Sampling| {
        let mut text = String::new();
        let prompt = model.tokenize("abba", true, false).unwrap();
        let out = generate(&mut context, &prompt, n, sampling, &mut |piece| {
            text.push_str(piece);
            ControlFlow::Continue(())
        });
        (out.unwrap(), text)
    };
    let greedy = Sampling {
        temperature: 0.0,
        ..Sampling::default()
    };
    let random = Sampling {
        temperature: 2.0,
        seed: 5,
        ..Sampling::default()
    };
    for sampling in [greedy, random] {
        let (first, text) = run(12, &sampling);
        let (second, same) = run(12, &sampling);
        assert_eq!((&first.tokens, &text), (&second.tokens, &same));
        assert!(first.tokens.len() == 12 || first.stop == Stop::End);
    }
    let (all, _) = run(1000, &greedy);
    assert!(matches!(all.stop, Stop::ContextFull | Stop::End), "{all:?}");

    let long = vec![5; 65];
    let error = generate(&mut context, &long, 1, &greedy, &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(matches!(
        error,
        Err(LlamaError::Batch {
            found: 65,
            limit: 64,
            ..
        })
    ));
}

#[test]
fn what_llama_cpp_would_abort_on_is_refused() {
    let model = load(TensorType::F16);
    let mut context = context(&model);
    let token = BatchToken {
        token: 1,
        position: 0,
        sequence: 0,
        logits: true,
    };
    let bad = [
        vec![],
        vec![token; 33],
        vec![BatchToken {
            token: VOCAB as i32,
            ..token
        }],
        vec![BatchToken { token: -1, ..token }],
        vec![BatchToken {
            position: 64,
            ..token
        }],
        vec![BatchToken {
            sequence: 1,
            ..token
        }],
    ];
    for tokens in bad {
        let error = context.decode(&tokens);
        assert!(matches!(error, Err(LlamaError::Batch { .. })), "{tokens:?}");
        assert!(context.logits().is_empty());
    }
    context.decode(&[token]).unwrap();
    assert_eq!(context.logits().len() as u64, VOCAB);
    let memory = context.memory();
    assert!(memory.model > 0 && memory.context > 0 && memory.compute > 0);
}

fn reference(model: &Model, other: &Model, options: &EvalOptions) -> Evaluation {
    compare(
        model,
        &Reference::Model(other),
        &text(),
        options,
        &mut |_| {},
    )
    .unwrap()
}

#[test]
fn a_model_is_as_good_as_itself() {
    let model = load(TensorType::F16);
    let mut seen = Vec::new();
    let alone = perplexity(&model, &text(), &options(), &mut |p| seen.push(p.done)).unwrap();
    assert_eq!(alone.perplexity.chunks, seen.len());
    assert_eq!(alone.perplexity.scored, seen.len() * 31);
    assert!(alone.perplexity.perplexity.value > 10.0);
    assert!(alone.perplexity.perplexity.error > 0.0);

    let same = reference(&model, &model, &options());
    let divergence = same.divergence.unwrap();
    assert_eq!(same.perplexity, alone.perplexity);
    assert!(divergence.kld.value.abs() < 1e-6, "{divergence:?}");
    assert_eq!(divergence.same_top.value, 1.0);
    assert!((divergence.perplexity_ratio.value - 1.0).abs() < 1e-4);
    assert!((divergence.logit_cosine.unwrap() - 1.0).abs() < 1e-9);

    let worse = reference(&load(TensorType::Q2_K), &model, &options());
    let worse = worse.divergence.unwrap();
    let better = reference(&load(TensorType::Q8_0), &model, &options());
    let better = better.divergence.unwrap();
    assert!(worse.kld.value > 10.0 * better.kld.value);
    assert!(worse.kld_99 >= worse.kld_median && worse.kld_max >= worse.kld_99_9);
    assert!(worse.logit_cosine < better.logit_cosine);
}

#[test]
fn batches_do_not_change_the_figures() {
    let model = load(TensorType::F32);
    let whole = perplexity(&model, &text(), &options(), &mut |_| {}).unwrap();
    for batch in [16, 50, 64, 4096] {
        let options = EvalOptions { batch, ..options() };
        let found = perplexity(&model, &text(), &options, &mut |_| {}).unwrap();
        let (a, b) = (found.perplexity.nll.value, whole.perplexity.nll.value);
        assert!((a - b).abs() < 1e-4, "{batch}: {a} {b}");
    }
}

#[test]
fn a_cached_reference_gives_the_same_figures() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("reference.cache");
    let (base, model) = (load(TensorType::F16), load(TensorType::Q4_K));
    let streamed = reference(&model, &base, &options());
    let key = cache_key(b"digest", &text(), &options());
    assert!(!cache_matches(&path, key));
    let written = write_reference(&base, &text(), &options(), &path, key, &mut |_| {}).unwrap();
    assert!(cache_matches(&path, key));
    assert!(!cache_matches(&path, [0; 32]));
    let from_cache = |path: &PathBuf, key| {
        compare(
            &model,
            &Reference::Cache(path, key),
            &text(),
            &options(),
            &mut |_| {},
        )
    };
    let cached = from_cache(&path, key).unwrap();
    let (mut a, mut b) = (streamed.divergence.unwrap(), cached.divergence.unwrap());
    assert!(a.logit_cosine.take().is_some() && b.logit_cosine.take().is_none());
    assert_eq!(a, b);
    let base_ppl = written.perplexity.perplexity.value;
    assert!((a.reference_perplexity.value / base_ppl - 1.0).abs() < 1e-4);

    assert!(matches!(
        from_cache(&path, [0; 32]),
        Err(EvalError::CacheKey(_))
    ));
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 100;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(
        from_cache(&path, key),
        Err(EvalError::CacheDamaged { .. })
    ));
    bytes.truncate(last);
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(
        from_cache(&path, key),
        Err(EvalError::CacheDamaged { .. })
    ));
}

#[test]
fn what_can_t_be_evaluated_is_refused() {
    let model = load(TensorType::F16);
    let short = perplexity(&model, "ab", &options(), &mut |_| {});
    assert!(matches!(
        short,
        Err(EvalError::TextTooShort { ctx: 64, .. })
    ));
    let ctx = EvalOptions {
        ctx: 2,
        ..options()
    };
    let tiny_ctx = perplexity(&model, &text(), &ctx, &mut |_| {});
    assert!(matches!(tiny_ctx, Err(EvalError::Ctx(2))));
}

#[test]
fn speed_is_measured_for_each_model() {
    let (a, b) = (load(TensorType::F16), load(TensorType::Q8_0));
    let options = SpeedOptions {
        prompt: CTX / 2,
        generate: 8,
        runs: 2,
        threads: Some(2),
    };
    let found = speed(&[&a, &b], &options).unwrap();
    assert_eq!(found.len(), 2);
    for s in found {
        assert!(s.prompt_per_second > 0.0 && s.generated_per_second > 0.0);
        assert!(s.model_bytes > 0 && s.load_seconds > 0.0);
    }
}

#[test]
fn weights_of_a_loaded_model_can_be_replaced() {
    let model = load(TensorType::F16);
    let tokens: Vec<Token> = (3..20).collect();
    let weight = "blk.1.ffn_down.weight";
    let tiny = tiny(TensorType::F16);
    let place = tiny.layout.iter().position(|t| t.name == weight).unwrap();
    let mut values = vec![0f32; tiny.data[place].len() / 2];
    ggml::dequantize(TensorType::F16, &tiny.data[place], &mut values).unwrap();
    let before = logits(&model, &tokens);
    model.replace(weight, &vec![0.0; values.len()]).unwrap();
    assert_ne!(logits(&model, &tokens), before);
    model.replace(weight, &values).unwrap();
    assert_eq!(logits(&model, &tokens), before);

    let refused = |result: Result<(), LlamaError>, reason: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    };
    refused(model.replace("blk.9.x.weight", &values), "no such weight");
    refused(model.replace(weight, &values[1..]), "elements");
    let (_dir, path) = on_disk(TensorType::F16);
    let mapped = Model::load(&path, &ModelOptions::default()).unwrap();
    refused(mapped.replace(weight, &values), "mapped from a file");
}
