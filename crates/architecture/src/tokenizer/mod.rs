//! The tokenizer as GGUF metadata.

mod bpe;
mod files;
mod gpt2;
mod json;
mod known;
mod pieces;
mod pretokenizer;
mod sentencepiece;
mod special;
mod tokens;
mod unigram;
mod vetted;
mod wordpiece;

use dwindle_formats::gguf::Metadata;

use self::files::Files;
use self::special::Special;
use self::tokens::Pieces;
use super::Error;
use super::families::Tokens;
use dwindle_checkpoint::huggingface::HuggingFace;

/// Writes `tokenizer.*`. `vocab_size` is that of the model, whose embedding has been found to
/// have as many rows.
pub(super) fn describe(
    folder: &HuggingFace,
    tokens: Tokens,
    vocab_size: u32,
    metadata: &mut Metadata,
) -> Result<(), Error> {
    let mut files = Files::read(folder)?;
    if tokens == Tokens::Gpt2 && files.tokenizer.is_none() {
        files.tokenizer = gpt2::assembled(folder)?;
    }
    match tokens {
        Tokens::WordPiece => return wordpiece::describe(&files, folder, vocab_size, metadata),
        Tokens::Unigram => return unigram::describe(&files, folder, vocab_size, metadata),
        Tokens::Llama | Tokens::Pieces | Tokens::Qwen | Tokens::Bpe | Tokens::Gpt2 => {}
    }
    let config = files.config.as_ref();
    if tokens == Tokens::Llama
        && let Some(add) = config.and_then(|c| c.get("add_prefix_space")?.as_bool())
    {
        metadata.set("tokenizer.ggml.add_space_prefix", add);
    }
    let sentencepiece = match tokens {
        Tokens::Llama | Tokens::Pieces | Tokens::Qwen => folder.read("tokenizer.model")?,
        _ => None,
    };
    if let Some(model) = sentencepiece {
        let pieces = sentencepiece::vocabulary(&model, folder, config, vocab_size)?;
        write_pieces(pieces, folder, &files, metadata)?;
    } else if matches!(tokens, Tokens::Llama | Tokens::Pieces) && files.has_pieces() {
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

/// A vocabulary of SentencePiece's with its scores.
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
