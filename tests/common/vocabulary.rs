//! Small vocabularies of the kinds that encoders have, made of a fixture's words.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::program::fixture;

/// The words of a text with their counts, the most frequent first.
fn words() -> Vec<(String, usize)> {
    let text = std::fs::read_to_string(fixture("kjv-calibration.txt")).unwrap();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for word in text.split(|c: char| !c.is_alphabetic()) {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    counts.remove("");
    let mut words: Vec<_> = counts.into_iter().collect();
    words.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    words
}

/// Characters that are tokens of their own.
fn characters() -> impl Iterator<Item = char> {
    (' '..='~')
        .filter(|c| *c != ' ' && !c.is_ascii_uppercase())
        .chain("äéñßøжщλ中文語。！€✓".chars())
}

fn added(names: &[(usize, &str)]) -> Value {
    let one = |(id, name): &(usize, &str)| {
        json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    names.iter().map(one).collect()
}

/// What puts a token before a text and one behind it.
fn framed(first: (usize, &str), last: (usize, &str)) -> Value {
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let (begin, end) = (special(first.1), special(last.1));
    let known = |(id, name): (usize, &str)| json!({"id": name, "ids": [id], "tokens": [name]});
    json!({
        "type": "TemplateProcessing",
        "single": [begin, text("A"), end],
        "pair": [begin, text("A"), end, text("B"), end],
        "special_tokens": {first.1: known(first), last.1: known(last)},
    })
}

/// `tokenizer.json` and `tokenizer_config.json` of a WordPiece.
pub fn wordpiece(size: usize) -> [Value; 2] {
    let mut tokens: Vec<String> = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        .map(String::from)
        .into();
    tokens.extend(characters().map(String::from));
    tokens.extend(characters().map(|c| format!("##{c}")));
    for (word, _) in words() {
        // Endings go on words.
        let ending = format!("##{}", &word[word.len() / 2..]);
        for token in [word, ending] {
            if tokens.len() < size && !tokens.contains(&token) {
                tokens.push(token);
            }
        }
    }
    let vocab: BTreeMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
    let names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let named: Vec<(usize, &str)> = (0..).zip(names).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added(&named),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": framed((2, "[CLS]"), (3, "[SEP]")),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab},
    });
    let config = json!({"tokenizer_class": "BertTokenizer", "do_lower_case": true,
        "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
        "mask_token": "[MASK]"});
    [tokenizer, config]
}

/// SentencePiece's map that makes a space of a tab and of the end of a line: a trie as a double array, and
/// what its leaves point to.
fn character_map() -> Vec<u8> {
    const TEXTS: &[u8] = b" \0";
    // The children of the root lie behind this, and their leaves behind the next.
    const CHILDREN: u32 = 0x100;
    const LEAVES: u32 = 0x200;
    const HAS_LEAF: u32 = 1 << 8;
    let mut units = vec![0u32; 0x400];
    units[0] = CHILDREN << 10;
    for key in b"\t\n" {
        let child = CHILDREN ^ u32::from(*key);
        units[child as usize] = LEAVES << 10 | HAS_LEAF | u32::from(*key);
        // A leaf: the place of its text.
        units[(child ^ LEAVES) as usize] = 1 << 31;
    }
    let mut map = (4 * units.len() as u32).to_le_bytes().to_vec();
    map.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    map.extend_from_slice(TEXTS);
    map
}

/// The same of unigrams.
pub fn unigram(size: usize) -> [Value; 2] {
    let names = ["<s>", "<pad>", "</s>", "<unk>"];
    let mut pieces: Vec<(String, f64)> = names.map(|name| (name.to_string(), 0.0)).into();
    let known = |pieces: &[(String, f64)], piece: &str| pieces.iter().any(|(p, _)| p == piece);
    pieces.push(("▁".into(), -4.0));
    pieces.extend(characters().map(|c| (c.to_string(), -9.0 - f64::from(c as u32 % 7) / 8.0)));
    for (word, count) in words() {
        let score = -15.0 + (count as f64).ln();
        let end = word.char_indices().nth(3).map_or(word.len(), |(at, _)| at);
        for (piece, less) in [(format!("▁{word}"), 0.0), (word[..end].to_string(), 1.5)] {
            if pieces.len() + 1 < size && !known(&pieces, &piece) {
                pieces.push((piece, score - less));
            }
        }
    }
    pieces.push(("<mask>".into(), 0.0));
    let mut named: Vec<(usize, &str)> = (0..).zip(names).collect();
    named.push((pieces.len() - 1, "<mask>"));
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added(&named),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Precompiled", "precompiled_charsmap": BASE64_STANDARD.encode(character_map())},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}]},
        "post_processor": framed((0, "<s>"), (2, "</s>")),
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": false},
    });
    let config = json!({"tokenizer_class": "XLMRobertaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
        "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>", "pad_token": "<pad>",
        "mask_token": "<mask>"});
    [tokenizer, config]
}
