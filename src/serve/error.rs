//! What a client did wrong, in the form that OpenAI's clients understand.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

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
            message: message.into(),
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
            parameter: Some(name.to_string()),
            ..ApiError::invalid(message)
        }
    }

    /// The prompt does not fit into the context.
    pub fn too_long(tokens: usize, ctx: usize) -> ApiError {
        ApiError {
            code: Some("context_length_exceeded"),
            ..ApiError::invalid(format!(
                "the prompt has {tokens} tokens, the context {ctx}; shorten the prompt, or serve with a larger `--ctx`"
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
            "this address has another method",
        )
    }

    /// The request came by a name that is not this machine's own.
    pub fn forbidden(host: &str) -> ApiError {
        let message = format!("`{host}` is no name of this machine; use localhost or 127.0.0.1");
        ApiError::new(StatusCode::FORBIDDEN, message)
    }

    /// More requests wait than the server keeps.
    pub fn busy() -> ApiError {
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many requests are waiting; try again later",
        )
    }

    /// The request is larger than the server reads.
    pub fn too_large(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
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

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body())).into_response()
    }
}
