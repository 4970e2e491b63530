//! WordPiece from `tokenizer.json`: a word is cut into the longest pieces of the vocabulary, from its beginning on.

use serde_json::Value;

use super::files::Files;
use super::json::{bad, listed};
use super::special::Special;
use super::tokens::kind;
use super::{pretokenizer, vetted};
use crate::Error;
use dwindle_checkpoint::huggingface::HuggingFace;
use dwindle_formats::gguf::Metadata;

const FILE: &str = "tokenizer.json";
/// What the vocabulary has before pieces that go on a word. llama.cpp has `▁` before those that begin one.
const GOES_ON: &str = "##";

/// Writes the vocabulary, padded to the size of the model's embedding.
pub(super) fn describe(
    files: &Files,
    folder: &HuggingFace,
    vocab_size: u32,
    metadata: &mut Metadata,
) -> Result<(), Error> {
    let json = files.json().ok_or(Error::NoTokenizer {
        hint: "; `vocab.txt` alone is not supported, save the tokenizer with a current `transformers`",
    })?;
    check(json)?;
    let library = vetted::tokenizer(json, vocab_size)?;
    let known = vetted::guarded(|| pretokenizer::known(&library))?;

    let size = vocab_size as usize;
    let mut tokens: Vec<String> = (0..size).map(|i| format!("[PAD{i}]")).collect();
    let mut kinds = vec![kind::UNUSED; size];
    let vocab = json.pointer("/model/vocab").and_then(Value::as_object);
    // The library has been read: ids are distinct and below the size.
    for (token, id) in vocab.into_iter().flatten() {
        let id = id.as_u64().unwrap_or_default() as usize;
        tokens[id] = match token.strip_prefix(GOES_ON) {
            Some(rest) => rest.to_string(),
            None => format!("▁{token}"),
        };
        kinds[id] = kind::NORMAL;
    }
    for (id, token, special) in listed(json, FILE, vocab_size)? {
        let (text, its) = match special {
            true => (token.to_string(), kind::CONTROL),
            false => (format!("▁{token}"), kind::USER_DEFINED),
        };
        (tokens[id], kinds[id]) = (text, its);
    }
    metadata.set("tokenizer.ggml.model", "bert");
    // llama.cpp has one way of splitting for all of them, whatever the name.
    metadata.set("tokenizer.ggml.pre", known.unwrap_or("default"));
    metadata.set("tokenizer.ggml.tokens", tokens);
    metadata.set("tokenizer.ggml.token_type", kinds);
    Special::new(folder, files, None)?.describe(metadata);
    Ok(())
}

/// What llama.cpp takes for granted.
fn check(json: &Value) -> Result<(), Error> {
    let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str);
    let held = [
        ("/model/type", "WordPiece"),
        ("/model/continuing_subword_prefix", GOES_ON),
        ("/normalizer/type", "BertNormalizer"),
        ("/pre_tokenizer/type", "BertPreTokenizer"),
    ];
    for (pointer, expected) in held {
        if text(pointer) != Some(expected) {
            let name = pointer[1..].replace('/', ".");
            let found = text(pointer).unwrap_or("nothing");
            let problem =
                format!("`{name}` is `{found}`, expected `{expected}`, as llama.cpp splits words");
            return Err(bad(FILE, problem));
        }
    }
    Ok(())
}
