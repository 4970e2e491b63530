//! What a request may cost before it is refused.

use std::io::{Read, Write};

use dwindle_formats::gguf::TensorType;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::common::program::{checkpoint, says};
use crate::common::server::{Server, answer, read, request};
use crate::common::tiny::tiny;

const COMPLETIONS: &str = "/v1/completions";

#[test]
fn a_prompt_is_refused_by_its_bytes_before_it_is_tokenized() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("tiny.gguf");
    tiny(TensorType::F16).write(&model);
    let server = Server::start(&model, &["--ctx", "64"]);
    let long = "And it came to pass ".repeat(1000);
    let messages = json!([{"role": "user", "content": "a"}, {"role": "user", "content": long}]);
    for (path, body) in [
        (COMPLETIONS, json!({"prompt": long})),
        (COMPLETIONS, json!({"prompt": [long]})),
        ("/v1/chat/completions", json!({"messages": messages})),
    ] {
        let (status, answer) = server.post(path, &body);
        assert_eq!(status, 400, "{answer}");
        assert_eq!(answer["error"]["code"], "context_length_exceeded");
        says(
            &answer.to_string(),
            &["bytes", "64 tokens", "a larger context"],
        );
    }
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_comes() {
    let server = Server::start(&checkpoint(), &["--ctx", "64"]);
    let head = format!("POST {COMPLETIONS} HTTP/1.1\r\n{}", server.host());
    let mut announced = server.say(&format!("{head}Content-Length: 15000000\r\n\r\n"));
    assert_eq!(read(&answer(&mut announced)).0, 413);
    // Without a length it ends where the limit is.
    let mut unannounced = server.say(&format!("{head}Transfer-Encoding: chunked\r\n\r\n"));
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let mut more = unannounced.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // The server may close the connection at any of them.
            let _ = (0..160).try_for_each(|_| more.write_all(chunk.as_bytes()));
        });
        let mut status = [0; 12];
        unannounced.read_exact(&mut status).unwrap();
        assert_eq!(&status, b"HTTP/1.1 413");
        drop(unannounced);
    });
}

#[test]
fn stop_texts_are_few_and_short() {
    let server = Server::start(&checkpoint(), &["--ctx", "64"]);
    let with = |stop: Value| {
        let mut body = request("And", 4);
        body["stop"] = stop;
        body
    };
    for (stop, pieces) in [
        (json!("a".repeat(10_000)), ["10000 bytes", "at most"]),
        (json!(["b", "a".repeat(10_000)]), ["10000 bytes", "at most"]),
        (json!(vec!["a"; 17]), ["17 stop texts", "at most"]),
    ] {
        let (status, answer) = server.post(COMPLETIONS, &with(stop));
        assert_eq!(status, 400, "{answer}");
        assert_eq!(answer["error"]["param"], "stop");
        says(&answer.to_string(), &pieces);
    }
    let (status, answer) = server.post(COMPLETIONS, &with("a".repeat(100).into()));
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn an_answer_does_not_repeat_what_the_client_wrote_at_length() {
    let server = Server::start(&checkpoint(), &["--ctx", "64"]);
    let long = "é".repeat(20_000);
    for body in [
        json!({"prompt": "a", &long: 1}),
        json!({"prompt": "a", "temperature": long}),
        json!({"prompt": "a", "max_tokens": {&long: 1}}),
    ] {
        let (status, answer) = server.ask("POST", COMPLETIONS, &body.to_string());
        assert_eq!(status, 400, "{answer}");
        assert!(answer.len() < 4000, "{} bytes", answer.len());
    }
}

#[test]
fn clients_beyond_the_queue_are_asked_to_come_back() {
    let server = Server::start(&checkpoint(), &["--ctx", "4096", "--parallel", "1"]);
    let send = |body: Value| server.send("POST", COMPLETIONS, &server.host(), &body.to_string());
    let mut long = request("And it came to pass", 4000);
    long["stream"] = true.into();
    let mut stream = send(long);
    stream.read_exact(&mut [0; 64]).unwrap();
    let clients: Vec<_> = (0..300).map(|_| send(request("And", 1))).collect();
    let answers: Vec<String> = clients.into_iter().map(|mut c| answer(&mut c)).collect();
    let (refused, answered): (Vec<String>, Vec<String>) =
        answers.into_iter().partition(|a| read(a).0 == 503);
    assert!(!refused.is_empty() && !answered.is_empty());
    for refused in &refused {
        says(&refused.to_lowercase(), &["retry-after: ", "server_error"]);
    }
    for answered in &answered {
        assert_eq!(read(answered).0, 200, "{answered}");
    }
    drop(stream);
    assert_eq!(server.post(COMPLETIONS, &request("And", 1)).0, 200);
}

#[test]
fn a_temperature_near_zero_takes_the_most_probable_token() {
    let server = Server::start(&checkpoint(), &["--ctx", "128"]);
    let text = |temperature: &str| {
        let body = format!(
            "{{\"prompt\": \"And it came to pass\", \"max_tokens\": 16, \
             \"temperature\": {temperature}}}"
        );
        let (status, answer) = server.ask("POST", COMPLETIONS, &body);
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["choices"][0]["text"].as_str().unwrap().to_string()
    };
    let greedy = text("0");
    for temperature in ["1e-45", "1e-40", "1e-38", "1e-37", "1e-10"] {
        assert_eq!(text(temperature), greedy, "{temperature}");
    }
}
