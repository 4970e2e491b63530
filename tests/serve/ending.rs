//! Ctrl-C, once and twice.

use std::io::Read;

use crate::common::program::{checkpoint, says};
use crate::common::server::{Server, answer, request};

#[test]
fn half_sent_requests_do_not_keep_the_server_alive() {
    let mut server = Server::start(&checkpoint(), &["--ctx", "64"]);
    let post = format!("POST /v1/completions HTTP/1.1\r\n{}", server.host());
    let clients = [
        server.connect(),
        server.say("GET /health HTTP/1.1\r\nHo"),
        server.say(&format!("{post}Content-Length: 100\r\n\r\n{{\"prompt\": ")),
    ];
    // What comes behind them has been answered, so they have been seen.
    assert_eq!(server.ask("GET", "/health", "").0, 200);
    server.interrupt();
    says(&server.line(), &["open answers"]);
    assert_eq!(server.end().code(), Some(0));
    drop(clients);
}

#[test]
fn an_open_answer_is_completed() {
    let mut server = Server::start(&checkpoint(), &["--ctx", "512"]);
    let mut body = request("And it came to pass", 200);
    body["stream"] = true.into();
    let host = server.host();
    let mut stream = server.send("POST", "/v1/completions", &host, &body.to_string());
    stream.read_exact(&mut [0; 64]).unwrap();
    server.interrupt();
    says(&server.line(), &["open answers"]);
    says(&answer(&mut stream), &["\"finish_reason\"", "[DONE]"]);
    assert_eq!(server.end().code(), Some(0));
}

#[test]
fn a_second_interrupt_ends_at_once_while_the_engine_computes() {
    for round in 0..5 {
        let mut server = Server::start(&checkpoint(), &["--ctx", "4096"]);
        let mut body = request("And it came to pass", 4000);
        body["stream"] = true.into();
        let host = server.host();
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let body = body.to_string();
                let mut client = server.send("POST", "/v1/completions", &host, &body);
                client.read_exact(&mut [0; 64]).unwrap();
                client
            })
            .collect();
        server.interrupt();
        says(&server.line(), &["open answers"]);
        server.interrupt();
        // A signal has no code.
        assert_eq!(server.end().code(), Some(130), "round {round}");
        drop(clients);
    }
}
