//! Vocabularies: what `llama_vocab` asserts of them, and what it recurses over.

use std::borrow::Cow;
use std::collections::HashMap;

use dwindle_formats::gguf::{Array, Metadata, Value};

use super::{Described, Keys, Refusal};

/// Bytes of a token: llama.cpp recurses over them. The longest of known vocabularies has 1024.
const TOKEN_BYTES: usize = 4096;

pub(super) fn check<'a>(
    metadata: &Metadata,
    tensors: impl Iterator<Item = Described<'a>>,
) -> Result<(), Refusal> {
    let kind = metadata.get("tokenizer.ggml.model").and_then(Value::as_str);
    if matches!(kind, Some("none" | "no_vocab")) {
        return without_tokens(metadata, tensors);
    }
    let Some(Value::Array(Array::String(tokens))) = metadata.get("tokenizer.ggml.tokens") else {
        return Ok(());
    };
    distinct(tokens)
}

/// Where there is no vocabulary, its size is what the metadata say, and as much is allocated.
fn without_tokens<'a>(
    metadata: &Metadata,
    mut tensors: impl Iterator<Item = Described<'a>>,
) -> Result<(), Refusal> {
    let Some(keys) = Keys::of(metadata) else {
        return Ok(());
    };
    let Some(size) = keys.scalar("vocab_size") else {
        return Ok(());
    };
    let rows = tensors.find(|t| t.name == "token_embd.weight");
    let rows = rows.and_then(|t| t.shape.get(1).copied()).unwrap_or(0);
    if size > rows.max(1 << 20) {
        let expected = format!("the {rows} rows of `token_embd.weight`");
        return keys.refuse("vocab_size", size, expected);
    }
    Ok(())
}

/// Two tokens of the same text have one number. An empty one gets a text of its own.
fn distinct(tokens: &[String]) -> Result<(), Refusal> {
    let mut known: HashMap<Cow<'_, str>, usize> = HashMap::with_capacity(tokens.len());
    for (index, token) in tokens.iter().enumerate() {
        if token.len() > TOKEN_BYTES {
            return Err(Refusal::LongToken {
                token: index,
                bytes: token.len(),
                limit: TOKEN_BYTES,
            });
        }
        // llama.cpp reads C strings, which end at a zero byte.
        let text = match token.split('\0').next().unwrap_or_default() {
            "" => Cow::Owned(format!("[EMPTY_{index}]")),
            text => Cow::Borrowed(text),
        };
        if let Some(first) = known.insert(text, index) {
            return Err(Refusal::SameTokens {
                first,
                second: index,
                text: token.clone(),
            });
        }
    }
    Ok(())
}
