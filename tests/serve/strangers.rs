//! Web pages must not reach a server that listens on this machine for its user.

use serde_json::Value;

use crate::common::program::{checkpoint, says};
use crate::common::server::{Server, answer, read, request};

#[test]
fn a_page_of_another_origin_can_ask_for_nothing() {
    let server = Server::start(&checkpoint(), &["--ctx", "64"]);
    let port = server.address.split(':').nth(1).unwrap();
    let host = server.host();
    let ask = |header: &str| {
        let body = request("And", 2).to_string();
        let mut client = server.send("POST", "/v1/completions", header, &body);
        read(&answer(&mut client))
    };
    for origin in [
        "http://evil.example".into(),
        "null".into(),
        "http://localhost".into(),
        format!("http://localhost.evil.example:{port}"),
        format!("http://evil.example:{port}"),
        "file://".into(),
        String::new(),
    ] {
        let (status, body) = ask(&format!("{host}Origin: {origin}\r\n"));
        assert_eq!(status, 403, "{origin}: {body}");
        let error: Value = serde_json::from_str(&body).unwrap();
        says(&error["error"]["message"].to_string(), &["origin"]);
    }
    for origin in [
        format!("http://localhost:{port}"),
        format!("http://LocalHost:{port}"),
        format!("http://127.0.0.1:{port}"),
        format!("http://[::1]:{port}"),
    ] {
        let (status, body) = ask(&format!("{host}Origin: {origin}\r\n"));
        assert_eq!(status, 200, "{origin}: {body}");
    }
    // Two origins are none.
    let twice = format!("{host}Origin: http://localhost:{port}\r\nOrigin: http://a.example\r\n");
    assert_eq!(ask(&twice).0, 403);
}

#[test]
fn names_of_this_machine_have_no_case() {
    let server = Server::start(&checkpoint(), &["--ctx", "64"]);
    let port = server.address.split(':').nth(1).unwrap();
    let ask = |host: &str| {
        let mut client = server.send("GET", "/v1/models", host, "");
        read(&answer(&mut client)).0
    };
    for host in ["LOCALHOST", "LocalHost", "127.0.0.1", "[::1]"] {
        assert_eq!(ask(&format!("Host: {host}:{port}\r\n")), 200, "{host}");
        assert_eq!(ask(&format!("Host: {host}\r\n")), 200, "{host}");
    }
    for host in [
        "evil.example",
        "localhost.evil.example",
        "evil.example:localhost",
        "é",
        "",
    ] {
        assert_eq!(ask(&format!("Host: {host}\r\n")), 403, "{host}");
    }
    let twice = format!("Host: localhost:{port}\r\nHost: evil.example\r\n");
    assert!((400..404).contains(&ask(&twice)));
}
