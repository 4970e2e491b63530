//! `/v1/embeddings`: reads requests as OpenAI's clients send them, and answers them.

use axum::Json;
use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::api::{known_model, known_tokens, parse};
use super::engine::Engine;
use super::error::ApiError;
use super::intake::Intake;
use crate::llama::model::Token;

/// Texts of one request, as many as OpenAI's API takes.
const TEXTS: usize = 2048;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    model: Option<String>,
    input: Input,
    encoding_format: Option<Format>,
    dimensions: Option<usize>,
    /// About the sender, and not about the answer.
    #[serde(rename = "user")]
    _user: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of tokens, or a list of such lists"
)]
enum Input {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<Token>),
    Many(Vec<Vec<Token>>),
}

/// How numbers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Float,
    /// The bytes of F32, the lowest first.
    Base64,
}

/// A request that can be answered.
struct Texts {
    tokens: Vec<Vec<Token>>,
    format: Format,
}

/// Answers a request.
pub async fn embeddings(State(intake): State<Intake>, request: HttpRequest) -> Response {
    match answer(&intake, request).await {
        Ok(body) => Json(body).into_response(),
        Err(error) => error.into_response(),
    }
}

/// The answer's body.
#[derive(Serialize)]
struct Answer {
    object: &'static str,
    data: Vec<Embedded>,
    model: String,
    usage: Usage,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

#[derive(Serialize)]
struct Embedded {
    object: &'static str,
    index: usize,
    embedding: Row,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Row {
    Numbers(Vec<f32>),
    Coded(String),
}

async fn answer(intake: &Intake, request: HttpRequest) -> Result<Answer, ApiError> {
    let Texts { tokens, format } = intake.take(request, read, tokenized).await?;
    let count = tokens.iter().map(Vec::len).sum();
    let rows = intake.embed(tokens).await?;
    let written = |row: Vec<f32>| match format {
        Format::Float => Row::Numbers(row),
        Format::Base64 => {
            let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
            Row::Coded(BASE64_STANDARD.encode(bytes))
        }
    };
    let embedded = |(index, row)| Embedded {
        object: "embedding",
        index,
        embedding: written(row),
    };
    Ok(Answer {
        object: "list",
        data: rows.into_iter().enumerate().map(embedded).collect(),
        model: intake.engine().name().to_string(),
        usage: Usage {
            prompt_tokens: count,
            total_tokens: count,
        },
    })
}

fn read(body: &[u8], engine: &Engine) -> Result<Body, ApiError> {
    if !engine.model().embeds() {
        return Err(ApiError::invalid(
            "this model continues texts and does not embed them; use `/v1/completions`",
        ));
    }
    let json: Value = serde_json::from_slice(body)
        .map_err(|e| ApiError::invalid(format!("the body is not JSON: {e}")))?;
    let body: Body = parse("", json)?;
    known_model(body.model.as_deref(), engine)?;
    let dimensions = engine.model().n_embd_out();
    if let Some(found) = body.dimensions.filter(|found| *found != dimensions) {
        let message = format!("`dimensions` is {found}, this model's embeddings have {dimensions}");
        return Err(ApiError::field("dimensions", message));
    }
    Ok(body)
}

fn tokenized(body: Body, engine: &Engine) -> Result<Texts, ApiError> {
    let limits = engine.limits();
    let text = |text: String| {
        limits.check_text(text.len())?;
        let tokens = engine
            .model()
            .tokenize_within(&text, limits.text(), true, false);
        tokens.map_err(|e| ApiError::field("input", e.to_string()))
    };
    let tokens: Vec<Vec<Token>> = match body.input {
        Input::Text(one) => vec![text(one)?],
        Input::Texts(many) => many.into_iter().map(text).collect::<Result<_, _>>()?,
        Input::Tokens(one) => vec![one],
        Input::Many(many) => many,
    };
    if tokens.is_empty() || tokens.len() > TEXTS {
        let message = format!("{} texts, expected 1 to {TEXTS}", tokens.len());
        return Err(ApiError::field("input", message));
    }
    for text in &tokens {
        known_tokens("input", text, engine)?;
        limits.check_length(text.len())?;
    }
    Ok(Texts {
        tokens,
        format: body.encoding_format.unwrap_or(Format::Float),
    })
}
