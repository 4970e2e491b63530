//! Names the pre-tokenizer, so that llama.cpp splits a text before BPE as the tokenizer does.
//!
//! llama.cpp's converter recognises the vocabularies it has met, by the token ids of a probe text.
//! A vocabulary trained since is unknown to it, though it may well be split in a known way: so what
//! it does not recognise is recognised by the structure of `tokenizer.json`.

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::json::bad;
use super::known::{FINGERPRINTS, PROBE};
use crate::Error;

/// Ways of splitting that are recognised by structure.
const STRUCTURES: &[(&str, &[Step])] = &[
    ("gpt-2", &[Step::Gpt2]),
    ("smollm", &[Step::Digits, Step::Gpt2]),
    ("llama-bpe", &[Step::Split(LLAMA3), Step::Bytes]),
    ("qwen2", &[Step::Split(QWEN2), Step::Bytes]),
];

/// One step of a pre-tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Byte-level with GPT-2's own splitting.
    Gpt2,
    /// Byte-level without splitting.
    Bytes,
    /// Each digit alone.
    Digits,
    /// What matches the pattern, isolated.
    Split(&'static str),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's name of the pre-tokenizer.
pub(super) fn recognise(
    tokenizer: &Tokenizer,
    json: &Value,
    decoder: Option<&str>,
) -> Result<&'static str, Error> {
    let fingerprint = probe(tokenizer)?;
    if let Some(name) = by_fingerprint(&fingerprint) {
        return Ok(name);
    }
    by_structure(json, decoder).ok_or_else(|| Error::PreTokenizer {
        found: describe(json, decoder),
        fingerprint,
        supported: STRUCTURES
            .iter()
            .map(|(name, _)| format!("the structure of `{name}`"))
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// llama.cpp's name of a tokenizer that its converter has met.
pub(super) fn known(tokenizer: &Tokenizer) -> Result<Option<&'static str>, Error> {
    Ok(by_fingerprint(&probe(tokenizer)?))
}

fn probe(tokenizer: &Tokenizer) -> Result<String, Error> {
    let probe = tokenizer
        .encode_fast(PROBE, true)
        .map_err(|e| bad("tokenizer.json", e))?;
    Ok(fingerprint(probe.get_ids()))
}

fn by_fingerprint(fingerprint: &str) -> Option<&'static str> {
    let known = FINGERPRINTS.iter().find(|(hash, _)| *hash == fingerprint);
    known.map(|(_, name)| *name)
}

/// SHA-256 of the ids as Python prints a list.
fn fingerprint(ids: &[u32]) -> String {
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    let digest = Sha256::digest(format!("[{}]", ids.join(", ")));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn by_structure(json: &Value, decoder: Option<&str>) -> Option<&'static str> {
    let steps = steps(json.get("pre_tokenizer")?)?;
    let (name, _) = STRUCTURES
        .iter()
        .find(|(_, structure)| *structure == steps.as_slice())?;
    let normalizer = json.pointer("/normalizer/type").and_then(Value::as_str);
    // llama.cpp has no normalizer; NFC does not change ordinary text, and Qwen uses it.
    let normalizes = normalizer.is_some_and(|n| n != "NFC" || *name != "qwen2");
    let flag = |key: &str| json.get("model").and_then(|m| m.get(key)?.as_bool()) == Some(true);
    // llama.cpp takes whole words from the vocabulary, before merging, for Llama 3 alone.
    let whole_words = flag("ignore_merges") == (*name == "llama-bpe");
    let fits = decoder == Some("ByteLevel")
        && !normalizes
        && whole_words
        && !flag("byte_fallback")
        && affixes(json).is_none();
    fits.then_some(*name)
}

/// A prefix or suffix that the model adds to pieces of words, which llama.cpp does not.
fn affixes(json: &Value) -> Option<&str> {
    ["continuing_subword_prefix", "end_of_word_suffix"]
        .iter()
        .find_map(|key| json.get("model")?.get(*key)?.as_str())
        .filter(|affix| !affix.is_empty())
}

/// A pre-tokenizer's steps, or `None` when one of them is unknown.
fn steps(pre_tokenizer: &Value) -> Option<Vec<Step>> {
    let flag = |key: &str, default: bool| match pre_tokenizer.get(key) {
        None => Some(default),
        Some(value) => value.as_bool(),
    };
    let step = match pre_tokenizer.get("type")?.as_str()? {
        "Sequence" => {
            let list = pre_tokenizer.get("pretokenizers")?.as_array()?;
            let nested: Option<Vec<Vec<Step>>> = list.iter().map(steps).collect();
            return Some(nested?.concat());
        }
        "ByteLevel" if flag("add_prefix_space", true)? => return None,
        "ByteLevel" if flag("use_regex", true)? => Step::Gpt2,
        "ByteLevel" => Step::Bytes,
        "Digits" if flag("individual_digits", false)? => Step::Digits,
        "Split" => {
            let isolated = pre_tokenizer.get("behavior")?.as_str()? == "Isolated";
            if !isolated || flag("invert", false)? {
                return None;
            }
            let pattern = pre_tokenizer.pointer("/pattern/Regex")?.as_str()?;
            let known = [LLAMA3, QWEN2].into_iter().find(|known| *known == pattern);
            Step::Split(known?)
        }
        _ => return None,
    };
    Some(vec![step])
}

/// The structure in short, for the message.
fn describe(json: &Value, decoder: Option<&str>) -> String {
    fn types(value: Option<&Value>, nested: &str) -> String {
        let Some(value) = value.filter(|v| !v.is_null()) else {
            return "none".into();
        };
        match value.get(nested).and_then(Value::as_array) {
            Some(list) => list
                .iter()
                .map(|v| types(Some(v), nested))
                .collect::<Vec<_>>()
                .join(" + "),
            None => {
                let kind = value.get("type").and_then(Value::as_str);
                let pattern = value.pointer("/pattern/Regex").and_then(Value::as_str);
                let shown: String = pattern.unwrap_or_default().chars().take(60).collect();
                match pattern {
                    Some(_) => format!("{} by `{shown}`", kind.unwrap_or("?")),
                    None => kind.unwrap_or("?").to_string(),
                }
            }
        }
    }
    format!(
        "normalizer {}, pre-tokenizer {}, decoder {}",
        types(json.get("normalizer"), "normalizers"),
        types(json.get("pre_tokenizer"), "pretokenizers"),
        decoder.unwrap_or("none"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_has_no_fingerprint_twice() {
        let mut hashes: Vec<&str> = FINGERPRINTS.iter().map(|(hash, _)| *hash).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), FINGERPRINTS.len());
        assert!(hashes.iter().all(|hash| hash.len() == 64));
    }

    #[test]
    fn fingerprints_hash_what_python_prints() {
        // printf '[1, 22]' | sha256sum
        let expected = Sha256::digest(b"[1, 22]");
        let hex: String = expected.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(fingerprint(&[1, 22]), hex);
    }

    fn structure(pre_tokenizer: Value, ignore_merges: bool) -> Option<&'static str> {
        let json = json!({
            "model": {"type": "BPE", "ignore_merges": ignore_merges},
            "pre_tokenizer": pre_tokenizer,
        });
        by_structure(&json, Some("ByteLevel"))
    }

    #[test]
    fn structures_are_recognised() {
        let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": regex});
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let sequence = |list: Vec<Value>| json!({"type": "Sequence", "pretokenizers": list});
        let digits = json!({"type": "Digits", "individual_digits": true});

        assert_eq!(structure(bytes(true), false), Some("gpt-2"));
        assert_eq!(
            structure(sequence(vec![digits, bytes(true)]), false),
            Some("smollm")
        );
        let llama = sequence(vec![split(LLAMA3), bytes(false)]);
        assert_eq!(structure(llama.clone(), true), Some("llama-bpe"));
        assert_eq!(structure(llama, false), None);
        let qwen = sequence(vec![split(QWEN2), bytes(false)]);
        assert_eq!(structure(qwen, false), Some("qwen2"));

        assert_eq!(structure(bytes(false), false), None);
        assert_eq!(structure(json!({"type": "ByteLevel"}), false), None);
        assert_eq!(structure(split("x"), false), None);
        assert_eq!(structure(json!({"type": "Whitespace"}), false), None);
    }
}
