//! The tokenizer as GGUF metadata.

mod bpe;
mod known;
mod pieces;
mod pretokenizer;
mod sentencepiece;
mod special;
mod vetted;

use dwindle_formats::gguf::Metadata;
use serde_json::Value;

use self::special::Special;
use super::Error;
use super::families::Tokens;
use dwindle_checkpoint::huggingface::HuggingFace;

/// llama.cpp's kinds of tokens.
mod kind {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// The tokenizer's files.
struct Files {
    /// `tokenizer.json` as it stands there, without what concerns no vocabulary.
    tokenizer: Option<Value>,
    /// `tokenizer_config.json`.
    config: Option<Value>,
}

/// A vocabulary with scores: SentencePiece's.
struct Pieces {
    tokens: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<i32>,
}

/// Writes `tokenizer.*`. `vocab_size` is that of the model, whose embedding has been found to
/// have as many rows.
pub(super) fn describe(
    folder: &HuggingFace,
    tokens: Tokens,
    vocab_size: u32,
    metadata: &mut Metadata,
) -> Result<(), Error> {
    let files = Files::read(folder)?;
    let config = files.config.as_ref();
    if tokens == Tokens::Llama
        && let Some(add) = config.and_then(|c| c.get("add_prefix_space")?.as_bool())
    {
        metadata.set("tokenizer.ggml.add_space_prefix", add);
    }
    let sentencepiece = match tokens {
        Tokens::Bpe => None,
        Tokens::Llama | Tokens::Qwen => folder.read("tokenizer.model")?,
    };
    if let Some(model) = sentencepiece {
        let pieces = sentencepiece::vocabulary(&model, folder, config, vocab_size)?;
        write_pieces(pieces, folder, &files, metadata)?;
    } else if tokens == Tokens::Llama && files.has_pieces() {
        let pieces = pieces::vocabulary(&files, vocab_size)?;
        write_pieces(pieces, folder, &files, metadata)?;
    } else {
        let vocabulary = bpe::vocabulary(&files, folder, vocab_size)?;
        metadata.set("tokenizer.ggml.model", "gpt2");
        metadata.set("tokenizer.ggml.pre", vocabulary.pre_tokenizer);
        metadata.set("tokenizer.ggml.tokens", vocabulary.tokens);
        metadata.set("tokenizer.ggml.token_type", vocabulary.kinds);
        let special = Special::new(folder, &files, None)?;
        metadata.set("tokenizer.ggml.merges", bpe::merges(&files, folder)?);
        special.describe(metadata);
    }
    if tokens == Tokens::Llama {
        exceptions(vocab_size, metadata);
    }
    Ok(())
}

/// What llama.cpp's converter knows of two Llamas by the size of their vocabularies.
fn exceptions(vocab_size: u32, metadata: &mut Metadata) {
    // CodeLlama's tokens for infilling.
    const CODE_LLAMA: u32 = 32_016;
    // Granite's small models of code, and SmolLM.
    const GRANITE_CODE: u32 = 49_152;
    if vocab_size == CODE_LLAMA {
        for (name, id) in [
            ("prefix", 32_007u32),
            ("suffix", 32_008),
            ("middle", 32_009),
            ("eot", 32_010),
        ] {
            let key = format!("tokenizer.ggml.{name}_token_id");
            if metadata.get(&key).is_none() {
                metadata.set(key, id);
            }
        }
    }
    if vocab_size == GRANITE_CODE {
        metadata.set("tokenizer.ggml.add_bos_token", false);
    }
}

fn write_pieces(
    pieces: Pieces,
    folder: &HuggingFace,
    files: &Files,
    metadata: &mut Metadata,
) -> Result<(), Error> {
    let count = pieces.tokens.len() as u64;
    metadata.set("tokenizer.ggml.model", "llama");
    metadata.set("tokenizer.ggml.pre", "default");
    metadata.set("tokenizer.ggml.tokens", pieces.tokens);
    metadata.set("tokenizer.ggml.scores", pieces.scores);
    metadata.set("tokenizer.ggml.token_type", pieces.kinds);
    Special::new(folder, files, Some(count))?.describe(metadata);
    Ok(())
}

impl Files {
    fn read(folder: &HuggingFace) -> Result<Files, Error> {
        let mut tokenizer = folder.json("tokenizer.json")?;
        if let Some(json) = &mut tokenizer {
            vetted::strip(json);
        }
        Ok(Files {
            tokenizer,
            config: folder.json("tokenizer_config.json")?,
        })
    }

    fn json(&self) -> Option<&Value> {
        self.tokenizer.as_ref()
    }

    /// The named special tokens that `tokenizer_config.json` sets.
    fn named_tokens(&self) -> Vec<&str> {
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
    fn has_pieces(&self) -> bool {
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

/// A token given as text or as an object with `content`.
fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// Added tokens that are control tokens by their looks, whatever their file says.
fn looks_special(token: &str) -> bool {
    let between = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&token)
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

fn bad(file: &'static str, problem: impl ToString) -> Error {
    Error::Tokenizer {
        file,
        problem: problem.to_string(),
    }
}
