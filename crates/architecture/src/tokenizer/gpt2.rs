//! GPT-2's vocabulary and merges, as older checkpoints have them, without a `tokenizer.json`.

use serde_json::{Map, Value, json};

use super::json::bad;
use crate::Error;
use dwindle_checkpoint::huggingface::HuggingFace;

/// The token that begins and ends a text.
const END: &str = "<|endoftext|>";

/// What a `tokenizer.json` of `vocab.json` and `merges.txt` would say, with GPT-2's way of splitting texts; `None` if
/// either is missing.
///
/// # Errors
/// When `vocab.json` is damaged.
pub(super) fn assembled(folder: &HuggingFace) -> Result<Option<Value>, Error> {
    let Some(vocabulary) = folder.json("vocab.json")? else {
        return Ok(None);
    };
    let Some(merges) = folder.read("merges.txt")? else {
        return Ok(None);
    };
    let Value::Object(vocabulary) = vocabulary else {
        return Err(bad("vocab.json", "it is no object of tokens and ids"));
    };
    let merges = String::from_utf8_lossy(&merges).into_owned();
    let of_line = |line: &str| {
        let (first, second) = line.split_once(' ')?;
        let is_pair = !first.starts_with("#version") && !second.contains(' ');
        is_pair.then(|| json!([first, second]))
    };
    let merges: Vec<Value> = merges.lines().filter_map(of_line).collect();
    Ok(Some(tokenizer(vocabulary, merges)))
}

fn tokenizer(vocabulary: Map<String, Value>, merges: Vec<Value>) -> Value {
    let end = vocabulary.get(END).map(|id| {
        json!({
            "id": id, "content": END, "special": true, "normalized": true,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    });
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0",
        "added_tokens": end.into_iter().collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": bytes,
        "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "continuing_subword_prefix": "", "end_of_word_suffix": "", "byte_fallback": false,
            "vocab": vocabulary, "merges": merges,
        },
    })
}
