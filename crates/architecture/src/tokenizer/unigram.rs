//! SentencePiece's unigrams from `tokenizer.json`: a text is cut into the pieces whose scores have the largest sum.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;

use super::files::Files;
use super::json::{bad, listed};
use super::special::Special;
use super::tokens::{Pieces, kind};
use crate::Error;
use dwindle_checkpoint::huggingface::HuggingFace;
use dwindle_formats::gguf::{Array, Metadata, Value as Gguf};

const FILE: &str = "tokenizer.json";
/// What llama.cpp's converter gives a token that stands only for its number.
const SCORE: f32 = -10_000.0;

/// Writes the vocabulary, padded to the size of the model's embedding.
pub(super) fn describe(
    files: &Files,
    folder: &HuggingFace,
    vocab_size: u32,
    metadata: &mut Metadata,
) -> Result<(), Error> {
    let json = files.json().ok_or(Error::NoTokenizer {
        hint: "; `sentencepiece.bpe.model` alone is not supported, save the tokenizer with a current `transformers`",
    })?;
    let pieces = pieces(json, vocab_size)?;
    metadata.set("tokenizer.ggml.model", "t5");
    metadata.set("tokenizer.ggml.pre", "default");
    metadata.set("tokenizer.ggml.tokens", pieces.tokens);
    metadata.set("tokenizer.ggml.scores", pieces.scores);
    metadata.set("tokenizer.ggml.token_type", pieces.kinds);
    metadata.set("tokenizer.ggml.add_space_prefix", begins_with_space(json));
    let squeezes = any(json, &|step| squeezes(step));
    metadata.set("tokenizer.ggml.remove_extra_whitespaces", squeezes);
    if let Some(map) = character_map(json)? {
        let map = Gguf::Array(Array::U8(map));
        metadata.set("tokenizer.ggml.precompiled_charsmap", map);
    }
    let size = u64::from(vocab_size);
    Special::new(folder, files, Some(size))?.describe(metadata);
    Ok(())
}

fn pieces(json: &Value, vocab_size: u32) -> Result<Pieces, Error> {
    let model = json.get("model");
    let field = |key: &str| model.and_then(|m| m.get(key));
    let kind_of_model = field("type").and_then(Value::as_str);
    let Some(vocab) = field("vocab").and_then(Value::as_array) else {
        let found = kind_of_model.unwrap_or("nothing");
        return Err(bad(
            FILE,
            format!("its model is `{found}`, expected `Unigram`"),
        ));
    };
    let size = vocab_size as usize;
    if vocab.len() > size {
        let problem = format!(
            "it has {} pieces, expected at most `vocab_size` {vocab_size} of `config.json`",
            vocab.len()
        );
        return Err(bad(FILE, problem));
    }
    let mut out = Pieces {
        tokens: (0..size).map(|i| format!("[PAD{i}]")).collect(),
        scores: vec![SCORE; size],
        kinds: vec![kind::UNUSED; size],
    };
    for (id, piece) in vocab.iter().enumerate() {
        let pair = piece.as_array().map(Vec::as_slice);
        let Some([text, score]) = pair else {
            return Err(bad(
                FILE,
                format!("piece {id} is no pair of a text and a score"),
            ));
        };
        let (Some(text), Some(score)) = (text.as_str(), score.as_f64()) else {
            return Err(bad(
                FILE,
                format!("piece {id} is no pair of a text and a score"),
            ));
        };
        out.tokens[id] = text.to_string();
        out.scores[id] = score as f32;
        out.kinds[id] = kind::NORMAL;
    }
    let unknown = field("unk_id").and_then(Value::as_u64);
    for (id, token, special) in listed(json, FILE, vocab_size)? {
        if id >= vocab.len() {
            out.scores[id] = 0.0;
        }
        out.tokens[id] = token.to_string();
        out.kinds[id] = match special {
            true => kind::CONTROL,
            false => kind::USER_DEFINED,
        };
    }
    if let Some(kind) = unknown.and_then(|id| out.kinds.get_mut(id as usize)) {
        *kind = kind::UNKNOWN;
    }
    Ok(out)
}

/// Whether a step, or one within it, is so. JSON's own nesting limit bounds the recursion.
fn any(step: &Value, is: &dyn Fn(&Value) -> bool) -> bool {
    let parts = [
        "normalizer",
        "pre_tokenizer",
        "normalizers",
        "pretokenizers",
    ];
    let within = |part: &Value| match part {
        Value::Array(steps) => steps.iter().any(|step| any(step, is)),
        step => any(step, is),
    };
    is(step) || parts.iter().filter_map(|part| step.get(part)).any(within)
}

/// Whether a text gets a space before its first word.
fn begins_with_space(json: &Value) -> bool {
    any(json, &|step| {
        let scheme = step.get("prepend_scheme").and_then(Value::as_str);
        let adds = step.get("add_prefix_space").and_then(Value::as_bool);
        step.get("type").and_then(Value::as_str) == Some("Metaspace")
            && scheme.map_or(adds != Some(false), |scheme| scheme != "never")
    })
}

/// Whether a step makes one space of several.
fn squeezes(step: &Value) -> bool {
    match step.get("type").and_then(Value::as_str) {
        Some("WhitespaceSplit") => true,
        Some("Replace") => step.pointer("/pattern/Regex").and_then(Value::as_str) == Some(" {2,}"),
        _ => false,
    }
}

/// SentencePiece's map of characters to what they are normalized to.
fn character_map(json: &Value) -> Result<Option<Vec<u8>>, Error> {
    let normalizer = json.get("normalizer");
    let steps = normalizer.and_then(|n| n.get("normalizers")?.as_array());
    let all = normalizer.into_iter().chain(steps.into_iter().flatten());
    let map = all
        .filter_map(|step| step.get("precompiled_charsmap")?.as_str())
        .find(|map| !map.is_empty());
    let read = |map: &str| {
        BASE64_STANDARD
            .decode(map)
            .map_err(|e| bad(FILE, format!("`precompiled_charsmap` is not base64: {e}")))
    };
    map.map(read).transpose()
}
