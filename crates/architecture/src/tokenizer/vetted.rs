//! Checks what the `tokenizers` library takes on trust in a `tokenizer.json`, then reads it with
//! that library.
//!
//! The library subtracts and slices by lengths of the file's choosing, and its steps may multiply a
//! text as often as the file says. What can't be known beforehand (a pattern that backtracks until
//! the matcher gives up) ends in a panic of the library, which is caught here and nowhere else.

use std::cell::Cell;
use std::collections::HashSet;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use serde::Deserialize as _;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::json::{bad, content};
use crate::Error;

const FILE: &str = "tokenizer.json";
/// How many times longer a text may become on its way through one of a tokenizer's parts. Real ones
/// at most double and redouble it.
const GROWTH: u64 = 1 << 12;
/// Bytes of all added tokens after normalizing. Real ones have some tens of thousands.
const ADDED_BYTES: u64 = 1 << 26;

/// The library's view of a file that was [`strip`]ped and whose ids must be below `vocab_size`.
pub(super) fn tokenizer(json: &Value, vocab_size: u32) -> Result<Tokenizer, Error> {
    check_model(json, vocab_size)?;
    check_growth(json)?;
    guarded(|| Tokenizer::deserialize(json).map_err(|e| bad(FILE, e)))
}

/// Takes out what concerns no vocabulary and brings lengths that the library would believe.
pub(super) fn strip(json: &mut Value) {
    if let Some(parts) = json.as_object_mut() {
        parts.retain(|key, _| !["truncation", "padding"].contains(&key.as_str()));
    }
}

/// Runs the library on what a file says. A panic of it becomes an error, and prints nothing.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    thread_local!(static GUARDED: Cell<bool> = const { Cell::new(false) });
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                others(info);
            }
        }));
    });
    let before = GUARDED.replace(true);
    // What the work has touched is dropped with the error.
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    result.unwrap_or_else(|_| {
        let problem = "the `tokenizers` library gave up on it; it is damaged or hostile";
        Err(bad(FILE, problem))
    })
}

/// Ids, and what merges make: the library slices by the length of a prefix and into a buffer of the
/// longest token's length.
fn check_model(json: &Value, vocab_size: u32) -> Result<(), Error> {
    let field = |key: &str| json.get("model").and_then(|model| model.get(key));
    // WordPiece's own reader holds its prefix.
    let is_bpe = field("type").and_then(Value::as_str) != Some("WordPiece");
    let prefix = field("continuing_subword_prefix").and_then(Value::as_str);
    if let Some(prefix) = prefix.filter(|p| is_bpe && !p.is_empty()) {
        let problem = format!(
            "it puts `{}` before pieces of words, which llama.cpp can't do",
            shown(prefix)
        );
        return Err(bad(FILE, problem));
    }
    let Some(vocab) = field("vocab").and_then(Value::as_object) else {
        return Err(bad(FILE, "it has no `model.vocab`"));
    };
    // The embedding has been found to have as many rows.
    let mut taken = vec![false; vocab_size as usize];
    for (token, id) in vocab {
        let known = id.as_u64().filter(|id| *id < u64::from(vocab_size));
        let Some(known) = known else {
            let problem = format!(
                "token `{}` has the id {id}, expected one below `vocab_size` {vocab_size} of `config.json`",
                shown(token)
            );
            return Err(bad(FILE, problem));
        };
        if std::mem::replace(&mut taken[known as usize], true) {
            let other = vocab.iter().find(|(_, other)| *other == id);
            let (a, b) = (other.map_or("", |(other, _)| other), token);
            let (a, b) = (shown(a), shown(b));
            return Err(bad(FILE, format!("`{a}` and `{b}` have the id {id}")));
        }
    }
    // Looked up three times a merge: by hashes, since the object is a tree.
    let known: HashSet<&str> = vocab.keys().map(String::as_str).collect();
    let mut made = String::new();
    let merges = field("merges").and_then(Value::as_array);
    for merge in merges.into_iter().flatten() {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) => match pair.as_slice() {
                [a, b] => a.as_str().zip(b.as_str()),
                _ => None,
            },
            _ => None,
        };
        let (a, b) = pair.ok_or_else(|| bad(FILE, "a merge is not a pair of tokens"))?;
        made.clear();
        made.extend([a, b]);
        let unknown = [a, b, &made].into_iter().find(|t| !known.contains(*t));
        if let Some(unknown) = unknown {
            let problem = format!(
                "a merge of `{}` and `{}` needs the token `{}`, which is not in the vocabulary",
                shown(a),
                shown(b),
                shown(unknown)
            );
            return Err(bad(FILE, problem));
        }
    }
    Ok(())
}

/// The beginning of a text that may be of any length.
fn shown(text: &str) -> String {
    text.chars().take(40).collect()
}

/// That no part makes a text, or the added tokens, much longer than they are.
fn check_growth(json: &Value) -> Result<(), Error> {
    let of = |part: &str| json.get(part).map_or(1, growth);
    let normalized = of("normalizer");
    let split = normalized.saturating_mul(of("pre_tokenizer"));
    for (part, growth) in [
        ("normalizer` and `pre_tokenizer", split),
        ("post_processor", of("post_processor")),
        ("decoder", of("decoder")),
    ] {
        if growth > GROWTH {
            let problem = format!(
                "its `{part}` may make a text {growth} times as long, the limit is {GROWTH}"
            );
            return Err(bad(FILE, problem));
        }
    }
    let added = json.get("added_tokens").and_then(Value::as_array);
    let lens = added.into_iter().flatten().filter_map(content);
    let bytes = lens.fold(0u64, |sum, token| sum.saturating_add(token.len() as u64));
    if bytes.saturating_mul(normalized) > ADDED_BYTES {
        let problem = format!(
            "its added tokens have {bytes} bytes, which normalizing may make {normalized} times as long"
        );
        return Err(bad(FILE, problem));
    }
    Ok(())
}

/// How many times longer a step, or a sequence of them, can make a text, from above.
fn growth(step: &Value) -> u64 {
    let text = |key: &str| step.get(key).and_then(Value::as_str).map_or(0, str::len) as u64;
    let list = |key: &str| {
        step.get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    match step.get("type").and_then(Value::as_str) {
        None if step.is_null() => 1,
        Some("Sequence") => ["normalizers", "pretokenizers", "processors", "decoders"]
            .into_iter()
            .flat_map(list)
            .map(growth)
            .fold(1, u64::saturating_mul),
        Some("Replace") => 1 + text("content"),
        Some("Prepend") => 1 + text("prepend"),
        Some("Append") => 1 + text("append"),
        Some("ByteLevel" | "RobertaProcessing" | "BertProcessing") => 2,
        Some("TemplateProcessing") => {
            let tokens = step.get("special_tokens");
            let ids = |name: &str| tokens?.get(name)?.get("ids")?.as_array().map(Vec::len);
            let piece = |piece: &Value| match piece.pointer("/SpecialToken/id") {
                Some(name) => name.as_str().and_then(ids).unwrap_or(1) as u64,
                None => 1,
            };
            list("single").map(piece).fold(1, u64::saturating_add)
        }
        // What only splits, strips or composes.
        Some(
            "NFC" | "Strip" | "StripAccents" | "Split" | "Digits" | "Punctuation" | "Whitespace"
            | "WhitespaceSplit" | "CharDelimiterSplit" | "UnicodeScripts" | "FixedLength"
            | "ByteFallback" | "Fuse",
        ) => 1,
        _ => 4,
    }
}

/// The added tokens' texts.
pub(super) fn added(tokenizer: &Tokenizer) -> HashSet<String> {
    let added = tokenizer.get_added_tokens_decoder();
    added.into_values().map(|token| token.content).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(json: &Value) -> String {
        tokenizer(json, 10).unwrap_err().to_string()
    }

    fn with(model: Value) -> Value {
        let mut json = json!({
            "version": "1.0",
            "padding": {"strategy": {"Fixed": u64::MAX}, "pad_id": 0},
            "truncation": {"max_length": 0, "stride": 5},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        });
        for (key, value) in model.as_object().unwrap() {
            json["model"][key] = value.clone();
        }
        strip(&mut json);
        json
    }

    #[test]
    fn lengths_that_the_library_would_believe_are_left_out() {
        let tokenizer = tokenizer(&with(json!({})), 10).unwrap();
        assert_eq!(tokenizer.encode_fast("ab", true).unwrap().get_ids(), [2]);
    }

    #[test]
    fn models_that_the_library_would_panic_at_are_refused() {
        for (model, problem) in [
            (json!({"continuing_subword_prefix": "######"}), "`######`"),
            (json!({"merges": [["ab", "ab"]]}), "`abab`"),
            (json!({"merges": ["ab ab"]}), "`abab`"),
            (json!({"merges": [["a"]]}), "not a pair"),
            (json!({"vocab": {"a": -1}}), "the id -1"),
            (
                json!({"vocab": {"a": 4_294_967_295u32}}),
                "the id 4294967295",
            ),
            (json!({"vocab": {"a": 1, "b": 1}}), "have the id 1"),
            (json!({"vocab": null}), "no `model.vocab`"),
        ] {
            let found = refused(&with(model));
            assert!(found.contains(problem), "{found}");
        }
    }

    #[test]
    fn steps_that_multiply_a_text_are_refused() {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let sequence = json!({"type": "Sequence", "normalizers": vec![double; 40]});
        let mut json = with(json!({}));
        json["normalizer"] = sequence;
        assert!(refused(&json).contains("times as long"));
        json["normalizer"] = json!({"type": "Prepend", "prepend": "▁"});
        tokenizer(&json, 10).unwrap();
        json["added_tokens"] = json!([{"id": 3, "content": "x".repeat(1 << 25), "special": false,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": true}]);
        assert!(refused(&json).contains("added tokens"));
    }

    #[test]
    fn a_pattern_that_never_ends_is_an_error_and_not_a_panic() {
        let mut json = with(json!({}));
        json["pre_tokenizer"] = json!({"type": "Split", "behavior": "Isolated", "invert": false,
            "pattern": {"Regex": "((a+)+)+((a*)*)*$(?<=b)"}});
        let tokenizer = tokenizer(&json, 10).unwrap();
        let text = "a".repeat(1 << 12);
        let result = guarded(|| {
            let encoded = tokenizer.encode_fast(text.as_str(), false);
            encoded.map(drop).map_err(|e| bad(FILE, e))
        });
        assert!(result.is_err());
    }
}
