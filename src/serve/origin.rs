//! Refuses requests of web pages that the user happens to visit.

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{HOST, HeaderName, ORIGIN};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;

/// Names of this machine.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Lets a request through that comes to this machine by a name of its own, so that a page can't
/// point another name here, and that no page of another origin has sent: browsers name the origin
/// with every POST.
pub async fn own_pages_only(State(port): State<u16>, request: Request, next: Next) -> Response {
    match check(request.headers(), port) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check(headers: &HeaderMap, port: u16) -> Result<(), ApiError> {
    let host = single(headers, HOST, "host")?;
    if let Some(host) = host
        && own_port(host).is_none()
    {
        return Err(ApiError::forbidden(host));
    }
    let Some(origin) = single(headers, ORIGIN, "origin")? else {
        return Ok(());
    };
    let Some(authority) = origin.strip_prefix("http://") else {
        return Err(ApiError::foreign(origin));
    };
    // Behind a forwarded port the server doesn't know its own, but the host names it.
    let is_same = host.is_some_and(|host| host.eq_ignore_ascii_case(authority));
    if is_same || own_port(authority) == Some(Some(port)) {
        Ok(())
    } else {
        Err(ApiError::foreign(origin))
    }
}

/// A header that may come once.
fn single<'h>(
    headers: &'h HeaderMap,
    name: HeaderName,
    what: &str,
) -> Result<Option<&'h str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.to_str() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(ApiError::unclear(what)),
        },
        _ => Err(ApiError::unclear(what)),
    }
}

/// The port, if one is given, of an address that is this machine's; `None` for any other address.
fn own_port(authority: &str) -> Option<Option<u16>> {
    let (name, port) = match authority.rsplit_once(':') {
        // The last part of an address in brackets is not a port.
        Some((name, port)) if !port.ends_with(']') => (name, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    let is_own = NAMES.iter().any(|own| own.eq_ignore_ascii_case(name));
    is_own.then_some(port)
}

#[cfg(test)]
mod tests {
    use super::own_port;

    #[test]
    fn own_addresses_are_known_with_and_without_a_port() {
        assert_eq!(own_port("LocalHost"), Some(None));
        assert_eq!(own_port("127.0.0.1:80"), Some(Some(80)));
        assert_eq!(own_port("[::1]"), Some(None));
        assert_eq!(own_port("[::1]:65535"), Some(Some(65535)));
        for other in [
            "",
            "localhost:",
            "localhost:65536",
            "a:80",
            "localhost.a",
            "127.0.0.1.a:80",
        ] {
            assert_eq!(own_port(other), None, "{other}");
        }
    }
}
