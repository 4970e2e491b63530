//! Values of the tokenizer's files, and what is wrong with them.

use serde_json::Value;

use crate::Error;

/// A token given as text or as an object with `content`.
pub(super) fn content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

pub(super) fn bad(file: &'static str, problem: impl ToString) -> Error {
    Error::Tokenizer {
        file,
        problem: problem.to_string(),
    }
}
