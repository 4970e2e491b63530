//! SentencePiece's vocabulary in a `tokenizer.json`, where there is no `tokenizer.model`.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::files::Files;
use super::json::{bad, content};
use super::tokens::{Pieces, kind};
use crate::Error;

const FILE: &str = "tokenizer.json";
/// What llama.cpp's converter gives every token whose score is not known.
const SCORE: f32 = -1000.0;

/// The vocabulary, padded to the size of the model's embedding.
pub(super) fn vocabulary(files: &Files, vocab_size: u32) -> Result<Pieces, Error> {
    let json = files.json().ok_or(Error::NoTokenizer { hint: "" })?;
    let base = json
        .pointer("/model/vocab")
        .and_then(Value::as_object)
        .ok_or_else(|| bad(FILE, "it has no `model.vocab`"))?;
    let mut by_id: BTreeMap<u64, &str> = BTreeMap::new();
    let id = |value: &Value| value.as_u64().filter(|id| *id < u64::from(vocab_size));
    for (token, value) in base {
        let id = id(value).ok_or_else(|| out_of_range(token, value, vocab_size))?;
        if let Some(other) = by_id.insert(id, token) {
            return Err(bad(
                FILE,
                format!("`{token}` and `{other}` have the id {id}"),
            ));
        }
    }
    let base_size = base.len() as u64;
    let mut added: BTreeMap<u64, &str> = BTreeMap::new();
    let list = json.get("added_tokens").and_then(Value::as_array);
    for token in list.into_iter().flatten() {
        let (Some(text), Some(value)) = (content(token), token.get("id")) else {
            return Err(bad(FILE, "an added token has no `content` or no `id`"));
        };
        let id = id(value).ok_or_else(|| out_of_range(text, value, vocab_size))?;
        if id >= base_size {
            added.insert(id, text);
        }
    }
    // Special by name, as the tokenizer's class or its configuration says.
    let named = files.named_tokens();
    let of_class = of_class(files);
    let is_special = |token: &str| named.contains(&token) || of_class.contains(&token);

    let mut out = Pieces {
        tokens: Vec::with_capacity(vocab_size as usize),
        scores: vec![SCORE; vocab_size as usize],
        kinds: Vec::with_capacity(vocab_size as usize),
    };
    let every: HashMap<u64, (&str, bool)> = by_id
        .iter()
        .map(|(id, token)| (*id, (*token, false)))
        .chain(added.iter().map(|(id, token)| (*id, (*token, true))))
        .collect();
    for i in 0..u64::from(vocab_size) {
        let (token, kind) = match every.get(&i) {
            None => (format!("[PAD{i}]"), kind::UNUSED),
            Some((token, _)) if is_special(token) => (token.to_string(), kind::CONTROL),
            Some((token, true)) => (token.to_string(), kind::USER_DEFINED),
            Some((token, false)) if is_byte(token) => (token.to_string(), kind::BYTE),
            Some((token, false)) => (token.to_string(), kind::NORMAL),
        };
        out.tokens.push(token);
        out.kinds.push(kind);
    }
    Ok(out)
}

/// Tokens that are special to the tokenizer's class.
fn of_class(files: &Files) -> &'static [&'static str] {
    let class = files
        .config
        .as_ref()
        .and_then(|c| c.get("tokenizer_class")?.as_str());
    match class {
        Some(class) if class.starts_with("Llama") => &["<s>", "</s>", "<unk>"],
        _ => &[],
    }
}

fn out_of_range(token: &str, id: &Value, vocab_size: u32) -> Error {
    let problem =
        format!("token `{token}` has the id {id}, expected one below `vocab_size` {vocab_size}");
    bad(FILE, problem)
}

/// `<0x0A>`
fn is_byte(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|hex| hex.len() == 2 && hex.chars().all(|c| c.is_ascii_hexdigit()))
}
