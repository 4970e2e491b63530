//! Clients that connect and don't go on.

use std::net::TcpStream;

use crate::common::program::checkpoint;
use crate::common::server::{Server, request};

/// Descriptors of the server, and more clients than those.
const DESCRIPTORS: u32 = 128;
const CLIENTS: u32 = 200;

/// Many clients that all stop behind this text.
fn crowd(server: &Server, text: &str) -> Vec<TcpStream> {
    (0..CLIENTS).map(|_| server.say(text)).collect()
}

#[track_caller]
fn is_well(server: &Server) {
    assert_eq!(server.ask("GET", "/health", "").0, 200);
    let (status, answer) = server.post("/v1/completions", &request("And", 2));
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn half_sent_requests_keep_nobody_out() {
    let server = Server::with_descriptors(DESCRIPTORS, &checkpoint(), &["--ctx", "64"]);
    let host = server.host();
    let post = format!("POST /v1/completions HTTP/1.1\r\n{host}");
    for text in [
        String::new(),
        "GET /health HTTP/1.1\r\nHo".into(),
        format!("{post}Content-Length: 100\r\n\r\n{{\"prompt\": "),
        format!("{post}Transfer-Encoding: chunked\r\n\r\n5\r\n{{\"pr"),
    ] {
        let crowd = crowd(&server, &text);
        is_well(&server);
        drop(crowd);
    }
}

#[test]
fn answered_clients_that_stay_keep_nobody_out() {
    let server = Server::with_descriptors(DESCRIPTORS, &checkpoint(), &["--ctx", "64"]);
    let crowd = crowd(
        &server,
        &format!("GET /health HTTP/1.1\r\n{}\r\n", server.host()),
    );
    is_well(&server);
    drop(crowd);
}

#[test]
fn clients_that_do_not_read_keep_nobody_out() {
    let options = ["--ctx", "4096", "--parallel", "2"];
    let server = Server::with_descriptors(DESCRIPTORS, &checkpoint(), &options);
    // Pipelined requests whose answers nobody takes.
    let one = format!("GET /v1/models HTTP/1.1\r\n{}\r\n", server.host());
    let crowd = crowd(&server, &one.repeat(50));
    is_well(&server);
    drop(crowd);
}
