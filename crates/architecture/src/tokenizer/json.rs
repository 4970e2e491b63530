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

/// The added tokens with their ids, and whether they are special.
pub(super) fn listed<'a>(
    json: &'a Value,
    file: &'static str,
    vocab_size: u32,
) -> Result<Vec<(usize, &'a str, bool)>, Error> {
    let added = json.get("added_tokens").and_then(Value::as_array);
    let one = |token: &'a Value| {
        let text = content(token);
        let id = token.get("id").and_then(Value::as_u64);
        let (Some(text), Some(id)) = (text, id.filter(|id| *id < u64::from(vocab_size))) else {
            let problem = format!(
                "an added token has no `content`, or no `id` below `vocab_size` {vocab_size} of `config.json`"
            );
            return Err(bad(file, problem));
        };
        let special = token.get("special").and_then(Value::as_bool);
        Ok((id as usize, text, special == Some(true)))
    };
    added.into_iter().flatten().map(one).collect()
}
