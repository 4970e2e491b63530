//! Texts and vocabularies that recurse deep or throw inside of llama.cpp: each ends in tokens or in an
//! error. Threads of tests have small stacks, as those of a server have.

use dwindle::llama::model::{LlamaError, Model, ModelOptions};
use dwindle_formats::gguf::{Array, TensorType, Value};

use crate::common::tiny::{Tiny, VOCAB, tiny};

fn load(tiny: &Tiny) -> Model {
    Model::load_feed("tiny", tiny.feed(), &ModelOptions::default()).unwrap()
}

/// The characters that stand for bytes in vocabularies of GPT-2's kind.
fn byte_characters() -> Vec<String> {
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut next = 255;
    (0..256u32)
        .map(|b| {
            let c = if printable(b) {
                b
            } else {
                next += 1;
                next
            };
            char::from_u32(c).unwrap().to_string()
        })
        .collect()
}

/// A model that splits texts with this pre-tokenizer, and has a token for each byte.
fn splitting(pre_tokenizer: &str) -> Model {
    let mut tiny = tiny(TensorType::F16);
    let mut tokens = byte_characters();
    while tokens.len() < VOCAB as usize {
        tokens.push(format!("<extra{}>", tokens.len()));
    }
    let m = &mut tiny.metadata;
    m.set("tokenizer.ggml.model", "gpt2");
    m.set("tokenizer.ggml.pre", pre_tokenizer);
    m.set("tokenizer.ggml.token_type", vec![1i32; tokens.len()]);
    m.set("tokenizer.ggml.tokens", tokens);
    m.set("tokenizer.ggml.merges", vec!["a b".to_string()]);
    m.set("tokenizer.ggml.add_bos_token", false);
    load(&tiny)
}

/// Every byte as its own token, as `splitting` has no merges that apply.
fn assert_bytes(model: &Model, text: &str) {
    let tokens = model.tokenize(text, false, false).unwrap();
    let bytes: Vec<i32> = text.bytes().map(i32::from).collect();
    assert_eq!(tokens, bytes);
}

#[test]
fn long_runs_are_tokenized_by_every_pre_tokenizer_that_recurses() {
    let names = [
        "tekken",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "gpt-4o",
        "seed-coder",
        "llama4",
        "minimax-m2",
        "falcon",
        "bloom",
        "viking",
        "bailingmoe",
        "afmoe",
        "exaone-moe",
        "tiny_aya",
        "default",
    ];
    for name in names {
        let model = splitting(name);
        for (piece, count) in [("=", 20_000), ("A", 20_000), ("漢", 20_000), (" ", 20_000)] {
            assert_bytes(&model, &piece.repeat(count));
        }
    }
}

#[test]
fn words_in_a_row_are_one_match_for_exaone_moe() {
    assert_bytes(&splitting("exaone-moe"), &"w x ".repeat(20_000));
}

#[test]
fn runs_over_the_limit_are_refused_with_their_place() {
    let model = splitting("tekken");
    let text = format!("some words {}", "=".repeat(300_000));
    let error = model.tokenize(&text, false, false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the text has 300001 characters in a row at byte 10 without a place to split it, \
         the limit is 262144; insert spaces or line breaks"
    );
    let longest = "=".repeat(262_144);
    assert_eq!(
        model.tokenize(&longest, false, false).unwrap().len(),
        262_144
    );
}

#[test]
fn digits_in_a_row_are_bounded_where_they_take_quadratic_time() {
    let model = splitting("superbpe");
    assert_bytes(&model, &"7".repeat(2_000));
    let error = model.tokenize(&"7".repeat(10_000), false, false);
    assert!(matches!(error, Err(LlamaError::Run { limit: 8192, .. })));
}

#[test]
fn a_caller_can_bound_the_bytes_of_a_text() {
    let model = splitting("tekken");
    assert_eq!(
        model.tokenize_within("abc", 3, false, false).unwrap().len(),
        3
    );
    let error = model.tokenize_within("abcd", 3, false, false).unwrap_err();
    assert!(matches!(
        error,
        LlamaError::TextTooLong { bytes: 4, limit: 3 }
    ));
}

#[test]
fn long_texts_of_words_are_not_runs() {
    let text = "The quick brown fox jumps, over 13 lazy dogs.\n".repeat(20_000);
    assert_bytes(&splitting("tekken"), &text);
}

/// The model with other names for its byte tokens.
fn without_bytes() -> Tiny {
    let mut tiny = tiny(TensorType::F16);
    let Some(Value::Array(Array::String(tokens))) = tiny.metadata.get("tokenizer.ggml.tokens")
    else {
        panic!("no tokens");
    };
    let renamed = tokens.iter().map(|t| match t.strip_prefix("<0x") {
        Some(rest) => format!("byte {rest}"),
        None => t.clone(),
    });
    let renamed: Vec<String> = renamed.collect();
    tiny.metadata.set("tokenizer.ggml.tokens", renamed);
    tiny
}

#[test]
fn a_vocabulary_without_bytes_gives_an_error_and_not_the_end() {
    let model = load(&without_bytes());
    let error = model.tokenize("caf\u{e9}", true, false).unwrap_err();
    assert!(matches!(error, LlamaError::Tokenize { .. }), "{error}");
    // It is of use all the same.
    assert!(model.tokenize("ab", true, false).is_ok());
}

#[test]
fn a_byte_token_that_names_no_byte_gives_an_error_and_not_the_end() {
    let mut tiny = without_bytes();
    let Some(Value::Array(Array::String(mut tokens))) =
        tiny.metadata.remove("tokenizer.ggml.tokens")
    else {
        panic!("no tokens");
    };
    // Its type says that it is a byte.
    tokens[3 + 0x41] = "xy".into();
    tiny.metadata.set("tokenizer.ggml.tokens", tokens);
    let error = Model::load_feed("tiny", tiny.feed(), &ModelOptions::default()).unwrap_err();
    assert!(matches!(error, LlamaError::Load { .. }), "{error}");
}
