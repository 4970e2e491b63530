//! A `tokenizer.json` from anywhere ends in a vocabulary or in one sentence.

#![cfg(unix)]

use std::os::unix::fs::symlink;
use std::path::Path;

use rand::seq::IndexedRandom as _;
use rand::{Rng, RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::common::program;
use crate::common::program::{checkpoint, dwindle, refusal, says};

const MUTATIONS: u64 = 500;

/// The fixture as links, less its `tokenizer.json`.
fn folder() -> TempDir {
    let dir = tempdir().unwrap();
    for entry in std::fs::read_dir(checkpoint()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "tokenizer.json" {
            symlink(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    dir
}

fn fixture() -> Value {
    let bytes = std::fs::read(checkpoint().join("tokenizer.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Paths of everything in a value; of the vocabulary and the merges a few.
fn places(value: &Value, at: &str, out: &mut Vec<String>) {
    out.push(at.to_string());
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, v)| (key.replace('~', "~0").replace('/', "~1"), v))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(i, v)| (i.to_string(), v))
            .collect(),
        _ => Vec::new(),
    };
    for (key, value) in inner.into_iter().take(40) {
        places(value, &format!("{at}/{key}"), out);
    }
}

/// What may stand anywhere.
fn anything(rng: &mut impl Rng) -> Value {
    let long = "ab".repeat(rng.random_range(0..5000));
    let deep =
        |inner: Value| json!({"type": "Sequence", "normalizers": [inner], "pretokenizers": []});
    let values = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(u64::MAX),
        json!(u32::MAX),
        json!(i64::MIN),
        json!(1e300),
        json!(""),
        json!("######"),
        json!("é"),
        json!(long),
        json!([]),
        json!({}),
        json!([0, -1, "a"]),
        json!({"Regex": "(a+)+$"}),
        json!({"Regex": "("}),
        json!({"String": ""}),
        json!({"type": "BPE"}),
        json!({"type": "WordPiece"}),
        json!({"type": "Replace", "pattern": {"String": ""}, "content": "aaaa"}),
        json!({"type": "Split", "pattern": {"Regex": "((.|\\s)*)*x"}, "behavior": "Isolated", "invert": true}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
            "pair": [], "special_tokens": {}}),
        json!({"type": "FixedLength", "length": 0}),
        deep(json!({"type": "NFKC"})),
        json!({"strategy": {"Fixed": u64::MAX}, "direction": "Right", "pad_id": 0, "pad_type_id": 0,
            "pad_token": "x", "pad_to_multiple_of": 0}),
        json!({"max_length": 0, "stride": 9, "strategy": "LongestFirst", "direction": "Right"}),
    ];
    values.choose(rng).unwrap().clone()
}

fn mutate(json: &mut Value, rng: &mut impl Rng) {
    let mut known = Vec::new();
    places(json, "", &mut known);
    let at = known.choose(rng).unwrap().clone();
    let other = known.choose(rng).and_then(|p| json.pointer(p)).cloned();
    let Some(place) = json.pointer_mut(&at) else {
        return;
    };
    match (rng.random_range(0..6), place) {
        (0, Value::Object(map)) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            if let Some(key) = keys.choose(rng) {
                map.remove(key);
            }
        }
        (1, Value::Array(list)) => list.extend(list.clone().into_iter().take(9)),
        (2, Value::Object(map)) => {
            const KEYS: [&str; 6] = [
                "continuing_subword_prefix",
                "end_of_word_suffix",
                "unk_token",
                "dropout",
                "type",
                "a",
            ];
            map.insert(KEYS.choose(rng).unwrap().to_string(), anything(rng));
        }
        (3, place) => *place = other.unwrap_or_default(),
        (_, place) => *place = anything(rng),
    }
}

fn plan_of(folder: &Path) -> assert_cmd::Command {
    let mut command = dwindle(["compress", "--preset", "f16", "--dry-run"]);
    command.arg(folder);
    command
}

#[test]
fn a_tokenizer_that_the_library_panics_at_is_one_sentence() {
    let dir = folder();
    let refused = |spoil: &dyn Fn(&mut Value)| {
        let mut json = fixture();
        spoil(&mut json);
        let path = dir.path().join("tokenizer.json");
        std::fs::write(path, json.to_string()).unwrap();
        refusal(&mut plan_of(dir.path()), 3)
    };
    let model = |key: &'static str, value: Value| {
        refused(&move |json: &mut Value| json["model"][key] = value.clone())
    };
    says(
        &model("continuing_subword_prefix", json!("######")),
        &["`tokenizer.json`", "`######`"],
    );
    let longest = |json: &mut Value| {
        let vocab = json["model"]["vocab"].as_object().unwrap();
        let longest = vocab.keys().max_by_key(|t| t.len()).unwrap().clone();
        json["model"]["merges"] = json!([[longest, longest]]);
    };
    says(&refused(&longest), &["`tokenizer.json`", "a merge"]);
    let endless = json!({"type": "Split", "behavior": "Isolated", "invert": false,
        "pattern": {"Regex": "((.|\\s)*)*(?<=x)(?=y)"}});
    says(
        &refused(&|json: &mut Value| json["pre_tokenizer"] = endless.clone()),
        &["`tokenizer.json`"],
    );
}

#[test]
fn lengths_for_padding_are_of_no_concern() {
    let dir = folder();
    let mut json = fixture();
    json["padding"] = json!({"strategy": {"Fixed": 1u64 << 60}, "direction": "Right", "pad_id": 0,
        "pad_type_id": 0, "pad_token": "x", "pad_to_multiple_of": null});
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    program::stdout(&mut plan_of(dir.path()));
}

#[test]
fn mutated_tokenizers_are_read_or_refused() {
    let dir = folder();
    let path = dir.path().join("tokenizer.json");
    let whole = fixture();
    let mut refused = 0;
    for seed in 0..MUTATIONS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut json = whole.clone();
        for _ in 0..rng.random_range(1..4) {
            mutate(&mut json, &mut rng);
        }
        std::fs::write(&path, json.to_string()).unwrap();
        // Whatever panics, aborts or never ends is a failure of this test.
        match dwindle::architecture::open(dir.path()) {
            Ok((_, model)) => assert!(!model.tensors.is_empty()),
            Err(e) => {
                refused += 1;
                assert!(!e.to_string().contains('\n'), "{e}");
            }
        }
    }
    assert!(
        refused > MUTATIONS / 4,
        "{refused} refused: the mutations are too tame"
    );
}
