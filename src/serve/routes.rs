//! Maps addresses to handlers, and answers as OpenAI's API does.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::middleware::from_fn_with_state;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::ReceiverStream;

use super::api::{Draft, Kind, Request};
use super::embeddings::embeddings;
use super::error::ApiError;
use super::intake::Intake;
use super::origin::own_pages_only;
use crate::llama::generate::Stop;
use crate::llama::parallel::Event;

/// Pieces of a stream that wait for a slow client.
const PIECES: usize = 64;

/// All that the server answers, at this port.
pub fn routes(intake: Intake, port: u16) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/embeddings", post(embeddings))
        .fallback(async |request: HttpRequest| {
            ApiError::not_found(format!("there is no `{}`", request.uri().path()))
        })
        .method_not_allowed_fallback(async || ApiError::method())
        .layer(from_fn_with_state(port, own_pages_only))
        .with_state(intake)
}

async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

async fn models(State(intake): State<Intake>) -> Json<Value> {
    Json(json!({"object": "list", "data": [{
        "id": intake.engine().name(),
        "object": "model",
        "created": now(),
        "owned_by": "dwindle",
    }]}))
}

async fn completions(State(intake): State<Intake>, request: HttpRequest) -> Response {
    answer(intake, request, Kind::Completion).await
}

async fn chat_completions(State(intake): State<Intake>, request: HttpRequest) -> Response {
    answer(intake, request, Kind::Chat).await
}

async fn answer(intake: Intake, request: HttpRequest, kind: Kind) -> Response {
    let parse = move |body: &[u8], engine: &_| Draft::read(kind, body, engine);
    let request = match intake.take(request, parse, Draft::request).await {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    let engine = intake.engine();
    let head = Head {
        kind,
        id: id(kind),
        created: now(),
        model: engine.name().to_string(),
        prompt_tokens: request.job.prompt.len(),
    };
    let Request {
        job,
        stream,
        include_usage,
    } = request;
    let Some(events) = engine.submit(job) else {
        return ApiError::busy().into_response();
    };
    if stream {
        streamed(head, events, include_usage)
    } else {
        whole(head, events).await
    }
}

/// What all pieces of an answer share.
struct Head {
    kind: Kind,
    id: String,
    created: u64,
    model: String,
    prompt_tokens: usize,
}

impl Head {
    fn usage(&self, tokens: usize, recalled: usize) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
            "prompt_tokens_details": {"cached_tokens": recalled},
        })
    }

    fn body(&self, is_chunk: bool, choices: Value) -> Value {
        let object = match (self.kind, is_chunk) {
            (Kind::Completion, _) => "text_completion",
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
        };
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    /// A piece of a stream: text, or the end.
    fn piece(&self, text: Option<&str>, reason: Option<&str>) -> Value {
        let choice = match (self.kind, text) {
            (Kind::Completion, text) => json!({"text": text.unwrap_or("")}),
            (Kind::Chat, Some(text)) => json!({"delta": {"content": text}}),
            (Kind::Chat, None) => json!({"delta": {}}),
        };
        self.body(true, json!([with_reason(choice, reason)]))
    }
}

fn with_reason(mut choice: Value, reason: Option<&str>) -> Value {
    choice["index"] = 0.into();
    choice["logprobs"] = Value::Null;
    choice["finish_reason"] = reason.into();
    choice
}

fn reason(stop: Stop) -> &'static str {
    match stop {
        Stop::End | Stop::Caller => "stop",
        Stop::Length | Stop::ContextFull => "length",
    }
}

async fn whole(head: Head, mut events: UnboundedReceiver<Event>) -> Response {
    let mut text = String::new();
    while let Some(event) = events.recv().await {
        match event {
            Event::Text(more) => text.push_str(&more),
            Event::Failed(error) => return ApiError::internal(error.to_string()).into_response(),
            Event::Done {
                stop,
                tokens,
                recalled,
            } => {
                let choice = match head.kind {
                    Kind::Completion => json!({"text": text}),
                    Kind::Chat => json!({"message": {"role": "assistant", "content": text}}),
                };
                let choice = with_reason(choice, Some(reason(stop)));
                let mut body = head.body(false, json!([choice]));
                body["usage"] = head.usage(tokens, recalled);
                return Json(body).into_response();
            }
        }
    }
    ApiError::ending().into_response()
}

fn streamed(head: Head, mut events: UnboundedReceiver<Event>, include_usage: bool) -> Response {
    let (pieces, stream) = tokio::sync::mpsc::channel(PIECES);
    tokio::spawn(async move {
        let send = async |data: String| -> bool {
            let piece = Ok::<_, Infallible>(SseEvent::default().data(data));
            pieces.send(piece).await.is_ok()
        };
        if head.kind == Kind::Chat {
            let first = json!({"delta": {"role": "assistant", "content": ""}});
            let body = head.body(true, json!([with_reason(first, None)]));
            if !send(body.to_string()).await {
                return;
            }
        }
        loop {
            // A client that goes away while nothing is said ends the job, too.
            let event = tokio::select! {
                event = events.recv() => event,
                () = pieces.closed() => return,
            };
            let sent = match event {
                Some(Event::Text(text)) => send(head.piece(Some(&text), None).to_string()).await,
                Some(Event::Failed(error)) => {
                    send(ApiError::internal(error.to_string()).body().to_string()).await;
                    return;
                }
                Some(Event::Done {
                    stop,
                    tokens,
                    recalled,
                }) => {
                    send(head.piece(None, Some(reason(stop))).to_string()).await;
                    if include_usage {
                        let mut body = head.body(true, json!([]));
                        body["usage"] = head.usage(tokens, recalled);
                        send(body.to_string()).await;
                    }
                    send("[DONE]".into()).await;
                    return;
                }
                None => return,
            };
            if !sent {
                return;
            }
        }
    });
    Sse::new(ReceiverStream::new(stream))
        .keep_alive(KeepAlive::default())
        .into_response()
        .map(Body::new)
}

/// Unlike that of any other answer of this process, and unlikely in another.
fn id(kind: Kind) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let prefix = match kind {
        Kind::Completion => "cmpl",
        Kind::Chat => "chatcmpl",
    };
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{:08x}{count:08x}", rand::random::<u32>())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}
