//! Errors of requests, in the form that OpenAI's clients expect.

use std::time::Duration;

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Seconds after which a client that was turned away may come again.
pub const RETRY_AFTER: u16 = 1;

/// Bytes of a message, and of a field's name: clients may have written some of it.
const MESSAGE: usize = 600;

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    parameter: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            message: shortened(message.into()),
            parameter: None,
            code: None,
        }
    }

    /// The request can't be understood.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// A field of the request has a value that can't be used.
    pub fn field(name: &str, message: impl Into<String>) -> ApiError {
        ApiError {
            parameter: Some(shortened(name.to_string())),
            ..ApiError::invalid(message)
        }
    }

    /// The prompt does not fit into the context.
    pub fn too_long(tokens: usize, ctx: usize) -> ApiError {
        ApiError {
            code: Some("context_length_exceeded"),
            ..ApiError::invalid(format!(
                "the prompt has {tokens} tokens, the context {ctx}; shorten the prompt, or start the server with a larger context"
            ))
        }
    }

    /// The prompt has more bytes than fit into the context.
    pub fn too_many_bytes(bytes: usize, limit: usize, ctx: usize) -> ApiError {
        ApiError {
            code: Some("context_length_exceeded"),
            ..ApiError::invalid(format!(
                "the prompt has {bytes} bytes, of which a context of {ctx} tokens takes {limit} at most; shorten the prompt, or start the server with a larger context"
            ))
        }
    }

    /// There is nothing at this address.
    pub fn not_found(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    /// The address has other methods.
    pub fn method() -> ApiError {
        ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "this address takes another method: GET for `/health` and `/v1/models`, POST for the others",
        )
    }

    /// The request came by a name that is not this machine's own.
    pub fn forbidden(host: &str) -> ApiError {
        let message = format!("`{host}` is not a name of this machine; use localhost or 127.0.0.1");
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    /// The request names two hosts, or origins, or none that can be read.
    pub fn unclear(what: &str) -> ApiError {
        let message = format!("the request has more than one {what}, or one that is not text");
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    /// The request comes from a page that is not this server's.
    pub fn foreign(origin: &str) -> ApiError {
        let message = format!("pages of the origin `{origin}` can't use this server");
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    /// More requests wait than the server keeps.
    pub fn busy() -> ApiError {
        ApiError::unavailable("too many requests are waiting; try again later")
    }

    /// The server ends before there is an answer.
    pub fn ending() -> ApiError {
        ApiError::unavailable("the server is ending")
    }

    fn unavailable(message: &str) -> ApiError {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// The body did not come in time.
    pub fn slow(limit: Duration) -> ApiError {
        ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not come within {} s", limit.as_secs()),
        )
    }

    /// The request is larger than the server reads.
    pub fn too_large(limit: usize) -> ApiError {
        ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "the body has more than {limit} bytes, more than any prompt that fits; shorten it, or start the server with a larger context"
            ),
        )
    }

    /// Something failed that is not the client's doing.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The error as a body.
    pub fn body(&self) -> serde_json::Value {
        let kind = match self.status.as_u16() {
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message,
            "type": kind,
            "param": self.parameter,
            "code": self.code,
        }})
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > MESSAGE {
        text.truncate(text.floor_char_boundary(MESSAGE));
        text.push('…');
    }
    text
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            let seconds = RETRY_AFTER.into();
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}
