//! Reads the pieces of SentencePiece's `tokenizer.model`, a protocol buffer.
//!
//! The reader is small and by hand: the schema needs four fields, and every length is checked
//! against the bytes that are left before it is used.

use serde_json::Value;

use super::json::bad;
use super::tokens::{Pieces, kind, looks_special};
use crate::Error;
use dwindle_checkpoint::huggingface::HuggingFace;

const FILE: &str = "tokenizer.model";

/// A piece of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
struct Piece {
    text: String,
    score: f32,
    kind: u64,
}

/// SentencePiece's kinds of pieces, which llama.cpp took over.
const NORMAL: u64 = 1;
const USER_DEFINED: u64 = 4;

/// A field's value.
enum Field<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
    Other,
}

/// The fields of one message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// The next field, `None` at the end, and an error where the bytes are not a message.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, &'static str> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let broken = "it ends inside a field or is not a protocol buffer";
        let tag = self.varint().ok_or(broken)?;
        let field = match tag & 7 {
            0 => Field::Number(self.varint().ok_or(broken)?),
            1 => {
                self.take(8).ok_or(broken)?;
                Field::Other
            }
            2 => {
                let len = self.varint().ok_or(broken)?;
                let len = usize::try_from(len).map_err(|_| broken)?;
                Field::Bytes(self.take(len).ok_or(broken)?)
            }
            5 => {
                let bytes = self.take(4).and_then(|b| b.first_chunk::<4>());
                Field::Float(f32::from_le_bytes(*bytes.ok_or(broken)?))
            }
            _ => return Err(broken),
        };
        Ok(Some((tag >> 3, field)))
    }
}

fn read_pieces(bytes: &[u8]) -> Result<Vec<Piece>, &'static str> {
    let mut pieces = Vec::new();
    let mut model = Fields(bytes);
    while let Some((number, field)) = model.next()? {
        // Field 1 of the model is a piece: 1 its text, 2 its score, 3 its kind.
        let (1, Field::Bytes(message)) = (number, field) else {
            continue;
        };
        let mut piece = Piece {
            text: String::new(),
            score: 0.0,
            kind: NORMAL,
        };
        let mut fields = Fields(message);
        while let Some(field) = fields.next()? {
            match field {
                (1, Field::Bytes(text)) => {
                    piece.text = str::from_utf8(text)
                        .map_err(|_| "a piece is not valid UTF-8")?
                        .to_string();
                }
                (2, Field::Float(score)) => piece.score = score,
                (3, Field::Number(kind)) => piece.kind = kind,
                _ => {}
            }
        }
        pieces.push(piece);
    }
    if pieces.is_empty() {
        return Err("it holds no pieces");
    }
    Ok(pieces)
}

/// The vocabulary of a `tokenizer.model`, with the tokens that were added later.
pub(super) fn vocabulary(
    model: &[u8],
    folder: &HuggingFace,
    config: Option<&Value>,
    vocab_size: u32,
) -> Result<Pieces, Error> {
    let pieces = read_pieces(model).map_err(|problem| bad(FILE, problem))?;
    let size = vocab_size as usize;
    let mut out = Pieces {
        tokens: (0..size).map(|i| format!("[PAD{i}]")).collect(),
        scores: vec![-10_000.0; size],
        kinds: vec![kind::UNUSED; size],
    };
    for (i, piece) in pieces.into_iter().take(size).enumerate() {
        out.tokens[i] = piece.text;
        out.scores[i] = piece.score;
        // User-defined pieces of the model itself are normal to llama.cpp's converter.
        out.kinds[i] = match piece.kind {
            USER_DEFINED => kind::NORMAL,
            2 => kind::UNKNOWN,
            3 => kind::CONTROL,
            5 => kind::UNUSED,
            6 => kind::BYTE,
            _ => kind::NORMAL,
        };
    }
    let added = folder.json("added_tokens.json")?;
    for (token, id) in added.iter().flat_map(Value::as_object).flatten() {
        if let Some(id) = id.as_u64().filter(|id| *id < u64::from(vocab_size)) {
            out.add(id as usize, token.clone(), kind::USER_DEFINED);
        }
    }
    let decoder = config.and_then(|c| c.get("added_tokens_decoder")?.as_object());
    for (id, token) in decoder.into_iter().flatten() {
        let file = "tokenizer_config.json";
        let id: usize = id.parse().map_err(|_| {
            bad(
                file,
                format!("`{id}` in `added_tokens_decoder` is not an id"),
            )
        })?;
        let content = token.get("content").and_then(Value::as_str);
        let content =
            content.ok_or_else(|| bad(file, format!("added token {id} has no `content`")))?;
        if id >= size {
            continue;
        }
        let special = token.get("special").and_then(Value::as_bool) == Some(true);
        if special || looks_special(content) {
            out.add(id, content.to_string(), kind::CONTROL);
        } else {
            out.add(id, content.replace('▁', " "), kind::USER_DEFINED);
        }
    }
    Ok(out)
}

impl Pieces {
    fn add(&mut self, id: usize, token: String, kind: i32) {
        self.tokens[id] = token;
        self.scores[id] = -1000.0;
        self.kinds[id] = kind;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Vec<u8> {
        let mut out = Vec::new();
        for (text, score, kind) in [("<unk>", 0f32, 2u8), ("▁a", -1.5, 1)] {
            let mut piece = vec![0x0a, text.len() as u8];
            piece.extend(text.as_bytes());
            piece.push(0x15);
            piece.extend(score.to_le_bytes());
            piece.extend([0x18, kind]);
            out.extend([0x0a, piece.len() as u8]);
            out.extend(piece);
        }
        // A trainer specification, which is skipped.
        out.extend([0x12, 2, 0x08, 1]);
        out
    }

    #[test]
    fn pieces_are_read() {
        let pieces = read_pieces(&model()).unwrap();
        let piece = |text: &str, score, kind| Piece {
            text: text.into(),
            score,
            kind,
        };
        assert_eq!(pieces, [piece("<unk>", 0.0, 2), piece("▁a", -1.5, 1)]);
    }

    #[test]
    fn damaged_bytes_are_refused_or_read_but_never_panic() {
        let model = model();
        for end in 0..model.len() {
            let _ = read_pieces(&model[..end]);
        }
        for at in 0..model.len() {
            for byte in 0..=255 {
                let mut bytes = model.clone();
                bytes[at] = byte;
                let _ = read_pieces(&bytes);
            }
        }
        assert!(
            read_pieces(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]).is_err()
        );
        assert!(read_pieces(&[0xff; 12]).is_err());
        assert!(read_pieces(b"").is_err());
    }
}
