//! The tokenizer's files, and what is common to reading them.

use serde_json::Value;

use super::json::content;
use super::vetted;
use crate::Error;
use dwindle_checkpoint::huggingface::HuggingFace;

/// The tokenizer's files.
pub(super) struct Files {
    /// `tokenizer.json` as it stands there, without what concerns no vocabulary.
    pub tokenizer: Option<Value>,
    /// `tokenizer_config.json`.
    pub config: Option<Value>,
}

impl Files {
    pub fn read(folder: &HuggingFace) -> Result<Files, Error> {
        let mut tokenizer = folder.json("tokenizer.json")?;
        if let Some(json) = &mut tokenizer {
            vetted::strip(json);
        }
        Ok(Files {
            tokenizer,
            config: folder.json("tokenizer_config.json")?,
        })
    }

    pub fn json(&self) -> Option<&Value> {
        self.tokenizer.as_ref()
    }

    /// The named special tokens that `tokenizer_config.json` sets.
    pub fn named_tokens(&self) -> Vec<&str> {
        const NAMES: [&str; 7] = [
            "bos_token",
            "eos_token",
            "unk_token",
            "sep_token",
            "pad_token",
            "cls_token",
            "mask_token",
        ];
        let Some(config) = &self.config else {
            return Vec::new();
        };
        let more = ["extra_special_tokens", "additional_special_tokens"]
            .iter()
            .find_map(|key| config.get(*key)?.as_array());
        NAMES
            .iter()
            .filter_map(|name| config.get(*name))
            .chain(more.into_iter().flatten())
            .filter_map(content)
            .collect()
    }

    /// Whether `tokenizer.json` holds SentencePiece's vocabulary in the form of BPE.
    pub fn has_pieces(&self) -> bool {
        let Some(json) = self.json() else {
            return false;
        };
        let model = json.get("model");
        let field = |key: &str| model.and_then(|m| m.get(key));
        field("type").and_then(Value::as_str) == Some("BPE")
            && field("byte_fallback").and_then(Value::as_bool) == Some(true)
            && json.pointer("/decoder/type").and_then(Value::as_str) == Some("Sequence")
    }
}
