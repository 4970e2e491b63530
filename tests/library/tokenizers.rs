//! What llama.cpp makes of texts with a file's vocabulary, beside the `tokenizers` library with the
//! checkpoint's.

use std::path::Path;

use dwindle::llama::model::{Model, ModelOptions};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use regex::Regex;
use serde_json::{Value, json};
use tempfile::tempdir;
use tokenizers::Tokenizer;

use crate::common::program::{dwindle, fixture, stdout};
use crate::common::record::Record;

/// Texts of each kind of vocabulary.
const TEXTS: usize = 2000;

/// Prose, code, numbers, white space, long runs, and characters of any script.
fn texts() -> Vec<String> {
    let prose = std::fs::read_to_string(fixture("kjv-heldout.txt")).unwrap();
    let words: Vec<String> = prose.split_whitespace().map(String::from).collect();
    let word = proptest::sample::select(words);
    let part = prop_oneof![
        8 => word,
        2 => "[a-zA-Z]{1,12}",
        2 => "[0-9]{1,9}",
        2 => "[!-/:-@\\[-`{-~]{1,6}",
        1 => "[äéñßøжщλΩЖ]{1,8}",
        1 => "[中文語。！€✓]{1,4}",
        1 => "\\PC{1,3}",
        1 => "fn [a-z]{1,6}\\(x: u32\\) -> u32 \\{ x \\+ 1 \\}",
        1 => "[a-z]{90,120}",
    ];
    let space = prop_oneof![8 => Just(" "), 1 => Just("  "), 1 => Just("\n"), 1 => Just("\t"), 1 => Just("")];
    let text = proptest::collection::vec((part, space), 1..12).prop_map(|parts| {
        parts
            .into_iter()
            .flat_map(|(p, s)| [p, s.to_string()])
            .collect::<String>()
    });
    let mut runner = TestRunner::deterministic();
    let next = |_| text.new_tree(&mut runner).unwrap().current();
    (0..TEXTS).map(next).collect()
}

/// Texts that both tokenize differently, save those in which something is known to be.
fn differing(folder: &Path, file: &Path, known: &str) -> Vec<String> {
    let is_known = Regex::new(known).unwrap();
    let library = Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let model = Model::load(file, &ModelOptions::default()).unwrap();
    let mut differ = Vec::new();
    let mut known = 0;
    for text in texts() {
        if is_known.is_match(&text) {
            known += 1;
            continue;
        }
        let expected = library.encode_fast(text.as_str(), true).unwrap();
        let expected: Vec<i32> = expected.get_ids().iter().map(|id| *id as i32).collect();
        let found = model.tokenize(&text, true, false).unwrap();
        if found != expected {
            differ.push(format!("{text:?}: {found:?}, expected {expected:?}"));
        }
    }
    assert!(known < TEXTS / 4, "{known}");
    differ
}

/// What is split from what before byte-level BPE, as Llama 3 and as Qwen 2 do.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The fixture's vocabulary with other steps before it.
fn split(steps: Value, whole_words: bool) -> Value {
    let bytes = std::fs::read(fixture("kjv-llama/tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&bytes).unwrap();
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
    json["model"]["ignore_merges"] = json!(whole_words);
    json
}

#[test]
fn texts_become_the_tokens_that_the_tokenizers_library_makes() {
    let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
    let by = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let digits = json!({"type": "Digits", "individual_digits": true});
    // What llama.cpp is known to do otherwise: it knows no limit to a word's length, and leaves all marks out.
    const WORD_PIECE: &str = r"\p{M}|\S{101,}";
    // What the small map of characters lacks.
    const UNIGRAM: &str = r"[\s&&[^ \t\n]]";
    const NOTHING: &str = r"^\b$";
    let dir = tempdir().unwrap();
    let mut wrong = Vec::new();
    for (kind, family, tokenizer, known) in [
        ("WordPiece", "bert", None, WORD_PIECE),
        ("unigrams", "xlm-roberta", None, UNIGRAM),
        ("GPT-2", "llama", None, NOTHING),
        (
            "SmolLM",
            "llama",
            Some(split(json!([digits, bytes(true)]), false)),
            NOTHING,
        ),
        (
            "Llama 3",
            "llama",
            Some(split(json!([by(LLAMA3), bytes(false)]), true)),
            NOTHING,
        ),
        (
            "Qwen 2",
            "llama",
            Some(split(json!([by(QWEN2), bytes(false)]), false)),
            NOTHING,
        ),
    ] {
        let (folder, file) = (dir.path().join(kind), dir.path().join("x.gguf"));
        Record::of(family).write(&folder);
        if let Some(json) = tokenizer {
            std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
        }
        let mut command = dwindle(["compress", "--preset", "f16"]);
        stdout(command.arg(&folder).arg("-o").arg(&file));
        let differ = differing(&folder, &file, known);
        let shown = differ.iter().take(12);
        wrong.extend(shown.map(|d| format!("{kind}, one of {}: {d}", differ.len())));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
