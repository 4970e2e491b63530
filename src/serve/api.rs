//! Parses and checks requests as OpenAI's clients send them.
//!
//! Fields that would change nothing are taken; fields that ask for what is not there are refused by
//! name, and so are unknown ones: nothing that a client asks for is silently ignored.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::engine::Engine;
use super::error::ApiError;
use super::limits::check_stops;
use crate::llama::generate::Sampling;
use crate::llama::parallel::Job;

/// Tokens that a completion has where the request does not say.
const COMPLETION_TOKENS: usize = 16;

/// Which of the two interfaces answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `/v1/completions`.
    Completion,
    /// `/v1/chat/completions`.
    Chat,
}

/// What both kinds of request have.
#[derive(Debug, Deserialize)]
pub struct Common {
    model: Option<String>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    stream: Option<bool>,
    stream_options: Option<BTreeMap<String, bool>>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, a list of one string, or a list of tokens"
)]
enum RawPrompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<i32>),
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of parts")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// Fields of [`Common`].
const COMMON: [&str; 11] = [
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
];

/// Fields that are about the sender and not about the answer.
const WITHOUT_EFFECT: [&str; 5] = [
    "user",
    "store",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
];

/// A request that can be answered.
#[derive(Debug)]
pub struct Request {
    /// What is to be generated.
    pub job: Job,
    /// Whether the text is wanted as it comes.
    pub stream: bool,
    /// Whether a stream ends with the counts of tokens.
    pub include_usage: bool,
}

/// What is to be continued, before it is tokenized.
#[derive(Debug)]
enum Prompt {
    Text { text: String, is_chat: bool },
    Tokens(Vec<i32>),
}

/// A request of which all is checked but how many tokens its text has.
#[derive(Debug)]
pub struct Draft {
    prompt: Prompt,
    request: Request,
}

impl Draft {
    /// Reads a body. Takes time by the body's length, and memory by a multiple of it.
    ///
    /// # Errors
    /// What is wrong, for the client.
    pub fn read(kind: Kind, body: &[u8], engine: &Engine) -> Result<Draft, ApiError> {
        let own = match kind {
            Kind::Completion => "prompt",
            Kind::Chat => "messages",
        };
        let (common, rest) = read(body, own)?;
        let (request, prompt) = match kind {
            Kind::Completion => {
                let request = common.request(COMPLETION_TOKENS, engine)?;
                (request, completion(parse(own, rest)?, engine)?)
            }
            Kind::Chat => {
                let request = common.request(usize::MAX, engine)?;
                (request, chat(parse(own, rest)?, engine)?)
            }
        };
        Ok(Draft { prompt, request })
    }

    /// Tokenizes the text: the one place where this server does.
    ///
    /// # Errors
    /// What is wrong, for the client.
    pub fn request(self, engine: &Engine) -> Result<Request, ApiError> {
        let Draft {
            prompt,
            mut request,
        } = self;
        request.job.prompt = match prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text { text, is_chat } => {
                let limits = engine.limits();
                limits.check_text(text.len())?;
                let tokens = engine
                    .model()
                    .tokenize_within(&text, limits.text(), true, is_chat);
                tokens.map_err(|e| ApiError::invalid(e.to_string()))?
            }
        };
        engine.limits().check_tokens(request.job.prompt.len())?;
        Ok(request)
    }
}

fn completion(prompt: RawPrompt, engine: &Engine) -> Result<Prompt, ApiError> {
    let text = |text| Prompt::Text {
        text,
        is_chat: false,
    };
    match prompt {
        RawPrompt::Text(one) => Ok(text(one)),
        RawPrompt::Texts(mut texts) if texts.len() == 1 => Ok(text(texts.remove(0))),
        RawPrompt::Tokens(tokens) => {
            known_tokens("prompt", &tokens, engine)?;
            Ok(Prompt::Tokens(tokens))
        }
        RawPrompt::Texts(texts) => Err(ApiError::field(
            "prompt",
            format!("{} prompts, expected one", texts.len()),
        )),
    }
}

/// Refuses tokens that the vocabulary lacks.
pub(super) fn known_tokens(field: &str, tokens: &[i32], engine: &Engine) -> Result<(), ApiError> {
    let vocab = engine.model().n_vocab() as i64;
    let is_unknown = |token: &&i32| !(0..vocab).contains(&i64::from(**token));
    match tokens.iter().find(is_unknown) {
        Some(unknown) => {
            let message = format!("the model has no token {unknown}");
            Err(ApiError::field(field, message))
        }
        None => Ok(()),
    }
}

/// Refuses another model than the server's.
pub(super) fn known_model(name: Option<&str>, engine: &Engine) -> Result<(), ApiError> {
    if name.is_some_and(|name| name != engine.name()) {
        let message = format!("this server has the model `{}` only", engine.name());
        return Err(ApiError::not_found(message));
    }
    Ok(())
}

fn chat(messages: Vec<Message>, engine: &Engine) -> Result<Prompt, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::field("messages", "there is no message"));
    }
    let messages: Vec<(String, String)> = messages
        .into_iter()
        .map(|m| Ok((m.role, text_of(m.content)?)))
        .collect::<Result<_, ApiError>>()?;
    let bytes = messages.iter().map(|(role, text)| role.len() + text.len());
    engine.limits().check_text(bytes.sum())?;
    let borrowed: Vec<(&str, &str)> = messages
        .iter()
        .map(|(role, content)| (role.as_str(), content.as_str()))
        .collect();
    let text = engine
        .model()
        .chat_prompt(&borrowed)
        .map_err(|e| ApiError::field("messages", e.to_string()))?;
    Ok(Prompt::Text {
        text,
        is_chat: true,
    })
}

fn text_of(content: Option<Content>) -> Result<String, ApiError> {
    match content {
        None => Ok(String::new()),
        Some(Content::Text(text)) => Ok(text),
        Some(Content::Parts(parts)) => {
            let text = |part: Part| match (part.kind.as_str(), part.text) {
                ("text", Some(text)) => Ok(text),
                (kind, _) => Err(ApiError::field(
                    "messages",
                    format!("a part of type `{kind}` can't be read, expected `text`"),
                )),
            };
            parts.into_iter().map(text).collect()
        }
    }
}

/// The fields that all requests have, and the one that is this request's own.
fn read(body: &[u8], own: &'static str) -> Result<(Common, Value), ApiError> {
    let json: Value = serde_json::from_slice(body)
        .map_err(|e| ApiError::invalid(format!("the body is not JSON: {e}")))?;
    let Value::Object(mut fields) = json else {
        return Err(ApiError::invalid("the body is JSON, but no object"));
    };
    let rest = fields
        .remove(own)
        .ok_or_else(|| ApiError::field(own, format!("`{own}` is missing")))?;
    for (name, value) in &fields {
        let is_read = COMMON.contains(&name.as_str()) || WITHOUT_EFFECT.contains(&name.as_str());
        if is_read || is_neutral(name, value) {
            continue;
        }
        let message = match NEUTRAL.contains(&name.as_str()) {
            true => format!("`{name}` is not supported with another value than its default"),
            false => format!("there is no field `{name}`"),
        };
        return Err(ApiError::field(name, message));
    }
    fields.retain(|name, value| COMMON.contains(&name.as_str()) && !value.is_null());
    let common = parse("", Value::Object(fields))?;
    Ok((common, rest))
}

/// Reads a field's value, or a body where the field has no name.
pub(super) fn parse<T: serde::de::DeserializeOwned>(
    field: &str,
    value: Value,
) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let within = e.path().to_string();
        let name = match (field, within.as_str()) {
            ("", within) => within.to_string(),
            (field, ".") => field.to_string(),
            (field, within) => format!(
                "{field}{}{within}",
                if within.starts_with('[') { "" } else { "." }
            ),
        };
        let message = format!("`{name}` can't be read: {}", e.into_inner());
        ApiError::field(&name, message)
    })
}

/// Fields of the API of which the values that ask for nothing are accepted.
const NEUTRAL: &[&str] = &[
    "n",
    "best_of",
    "presence_penalty",
    "frequency_penalty",
    "echo",
    "logprobs",
    "top_logprobs",
    "suffix",
    "logit_bias",
    "response_format",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "modalities",
    "service_tier",
    "reasoning_effort",
];

/// Whether a value asks for nothing.
fn is_neutral(name: &str, value: &Value) -> bool {
    if !NEUTRAL.contains(&name) {
        return false;
    }
    let is_empty = match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        value => value.is_null(),
    };
    is_empty
        || match name {
            "n" | "best_of" => *value == 1,
            "presence_penalty" | "frequency_penalty" => value.as_f64() == Some(0.0),
            "echo" | "logprobs" => *value == false,
            "response_format" => value["type"] == "text",
            "tool_choice" => value == "none" || value == "auto",
            "parallel_tool_calls" => value.is_boolean(),
            "modalities" => *value == serde_json::json!(["text"]),
            "service_tier" => value == "auto" || value == "default",
            _ => false,
        }
}

impl Common {
    /// The request, its prompt left empty.
    fn request(self, default_limit: usize, engine: &Engine) -> Result<Request, ApiError> {
        known_model(self.model.as_deref(), engine)?;
        if engine.model().embeds() {
            return Err(ApiError::invalid(
                "this model embeds texts and does not continue them; use `/v1/embeddings`",
            ));
        }
        let defaults = Sampling::default();
        let within = |name: &str, value: Option<f32>, default: f32, largest: f32| match value {
            None => Ok(default),
            Some(v) if (0.0..=largest).contains(&v) => Ok(v),
            Some(v) => Err(ApiError::field(
                name,
                format!("`{name}` is {v}, expected 0 to {largest}"),
            )),
        };
        let sampling = Sampling {
            temperature: within("temperature", self.temperature, 1.0, 2.0)?,
            top_p: within("top_p", self.top_p, 1.0, 1.0)?,
            min_p: within("min_p", self.min_p, 0.0, 1.0)?,
            top_k: self.top_k.unwrap_or(defaults.top_k),
            seed: match self.seed {
                // The low bits suffice to distinguish seeds.
                Some(seed) => seed as u32,
                None => rand::random(),
            },
        };
        let stops = match self.stop {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
        check_stops(&stops)?;
        let wanted = self.max_completion_tokens.or(self.max_tokens);
        Ok(Request {
            job: Job {
                limit: wanted.map_or(default_limit, |n| n as usize),
                prompt: Vec::new(),
                sampling,
                stops,
            },
            stream: self.stream.unwrap_or(false),
            include_usage: self
                .stream_options
                .is_some_and(|o| o.get("include_usage") == Some(&true)),
        })
    }
}
