//! Byte-level BPE from `tokenizer.json`.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::files::Files;
use super::json::{bad, content};
use super::tokens::{kind, looks_special};
use super::{pretokenizer, vetted};
use crate::Error;
use dwindle_checkpoint::huggingface::HuggingFace;

const FILE: &str = "tokenizer.json";

/// A vocabulary of byte-level BPE.
pub(super) struct Vocabulary {
    pub(super) pre_tokenizer: &'static str,
    pub(super) tokens: Vec<String>,
    pub(super) kinds: Vec<i32>,
}

/// Reads the vocabulary, padded to the size of the model's embedding.
pub(super) fn vocabulary(
    files: &Files,
    folder: &HuggingFace,
    vocab_size: u32,
) -> Result<Vocabulary, Error> {
    let json = byte_level(files, folder)?;
    let decoder = json.pointer("/decoder/type").and_then(Value::as_str);
    let mut tokenizer = vetted::tokenizer(json, vocab_size)?;
    vetted::guarded(|| add_tokens(&mut tokenizer, files))?;
    let pre_tokenizer = vetted::guarded(|| pretokenizer::recognise(&tokenizer, json, decoder))?;

    let mut by_id = by_id(&tokenizer, vocab_size)?;
    let added = tokenizer.get_added_tokens_decoder();
    let mut tokens = Vec::with_capacity(vocab_size as usize);
    let mut kinds = Vec::with_capacity(vocab_size as usize);
    for id in 0..vocab_size {
        let Some(mut token) = by_id.remove(&id) else {
            tokens.push(format!("[PAD{id}]"));
            kinds.push(kind::UNUSED);
            continue;
        };
        let kind = match added.get(&id) {
            None => kind::NORMAL,
            Some(added) => {
                if !added.normalized {
                    token = vetted::guarded(|| round_trip(&tokenizer, token))?;
                }
                if added.special || looks_special(&token) {
                    kind::CONTROL
                } else {
                    token = token.replace('▁', " ");
                    kind::USER_DEFINED
                }
            }
        };
        tokens.push(token);
        kinds.push(kind);
    }
    Ok(Vocabulary {
        pre_tokenizer,
        tokens,
        kinds,
    })
}

/// The `tokenizer.json`, if there is one of byte-level BPE.
fn byte_level<'a>(files: &'a Files, folder: &HuggingFace) -> Result<&'a Value, Error> {
    let Some(json) = &files.tokenizer else {
        let hint = if folder.dir().join("tekken.json").is_file() {
            "; Mistral's `tekken.json` is not supported"
        } else if folder.dir().join("vocab.json").is_file() {
            "; `vocab.json` and `merges.txt` alone don't say how this model splits texts, save its tokenizer with a current `transformers`"
        } else {
            ""
        };
        return Err(Error::NoTokenizer { hint });
    };
    let model = json.pointer("/model/type").and_then(Value::as_str);
    if model.is_some_and(|m| m != "BPE") {
        let problem = format!(
            "its model is `{}`, supported are byte-level `BPE` and SentencePiece's pieces",
            model.unwrap_or_default()
        );
        return Err(bad(FILE, problem));
    }
    Ok(json)
}

/// The tokens by their ids, which are those of the model's embedding.
fn by_id(tokenizer: &Tokenizer, vocab_size: u32) -> Result<HashMap<u32, String>, Error> {
    let vocab = tokenizer.get_vocab(true);
    let mut by_id: HashMap<u32, String> = HashMap::with_capacity(vocab.len());
    for (token, id) in vocab {
        if id >= vocab_size {
            let problem = format!(
                "token `{token}` has the id {id}, expected one below `vocab_size` {vocab_size} of `config.json`"
            );
            return Err(bad(FILE, problem));
        }
        by_id.insert(id, token);
    }
    Ok(by_id)
}

/// llama.cpp takes control and user-defined tokens as normalized already.
fn round_trip(tokenizer: &Tokenizer, token: String) -> Result<String, Error> {
    let encoded = tokenizer
        .encode_fast(token.as_str(), false)
        .map_err(|e| bad(FILE, e))?;
    tokenizer
        .decode(encoded.get_ids(), false)
        .map_err(|e| bad(FILE, e))
}

/// Tokens that `tokenizer_config.json` adds, as `transformers` would: those it lists, and named
/// special tokens that are not added tokens yet.
fn add_tokens(tokenizer: &mut Tokenizer, files: &Files) -> Result<(), Error> {
    let config = files.config.as_ref();
    let decoder = config.and_then(|c| c.get("added_tokens_decoder")?.as_object());
    let mut listed: Vec<(u64, &Value)> = decoder
        .into_iter()
        .flatten()
        .filter_map(|(id, token)| Some((id.parse().ok()?, token)))
        .collect();
    listed.sort_by_key(|(id, _)| *id);
    let mut add = Vec::new();
    let there = vetted::added(tokenizer);
    for (_, token) in listed {
        let flag = |key: &str| token.get(key).and_then(Value::as_bool);
        let Some(text) = content(token).filter(|t| !there.contains(*t)) else {
            continue;
        };
        let special = flag("special").unwrap_or(false);
        add.push(
            AddedToken::from(text, special)
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false))
                .normalized(flag("normalized").unwrap_or(!special)),
        );
    }
    let mut listed: HashSet<String> = add.iter().map(|a| a.content.clone()).collect();
    for text in files.named_tokens() {
        if !there.contains(text) && listed.insert(text.to_string()) {
            add.push(AddedToken::from(text, true));
        }
    }
    // At once, because each call builds the library's index of all of them anew.
    let added = tokenizer.add_tokens(add);
    added.map_err(|e| bad("tokenizer_config.json", e))?;
    Ok(())
}

/// The merges, in order, each as two tokens with a space between them.
pub(super) fn merges(files: &Files, folder: &HuggingFace) -> Result<Vec<String>, Error> {
    let list = files
        .json()
        .and_then(|json| json.pointer("/model/merges")?.as_array());
    // A space within a token would be taken for the one between; it becomes what byte-level
    // BPE writes for it.
    let part = |value: &Value| value.as_str().map(|s| s.replace(' ', "Ġ"));
    let mut merges = Vec::with_capacity(list.map_or(0, Vec::len));
    for merge in list.into_iter().flatten() {
        let text = match merge {
            Value::String(text) => Some(text.clone()),
            Value::Array(pair) => match pair.as_slice() {
                [a, b] => part(a).zip(part(b)).map(|(a, b)| format!("{a} {b}")),
                _ => None,
            },
            _ => None,
        };
        merges.push(text.ok_or_else(|| bad(FILE, "a merge is not a pair of tokens"))?);
    }
    if merges.is_empty() {
        let text = folder.read("merges.txt")?.unwrap_or_default();
        for (i, line) in String::from_utf8_lossy(&text).lines().enumerate() {
            let is_comment = i == 0 && line.starts_with('#');
            let parts: Vec<&str> = line.split_whitespace().collect();
            if let ([a, b], false) = (parts.as_slice(), is_comment) {
                merges.push(format!("{a} {b}"));
            }
        }
    }
    if merges.is_empty() {
        return Err(bad(FILE, "it has no merges"));
    }
    Ok(merges)
}
