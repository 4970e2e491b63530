//! `dwindle serve` as clients meet it.

use std::io::Read;
use std::time::{Duration, Instant};

use dwindle_formats::gguf::TensorType;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::common::program::{checkpoint, compress, dwindle, says, stdout};
use crate::common::server::{Server, answer, read, request};
use crate::common::tiny::tiny;

#[test]
#[expect(clippy::too_many_lines, reason = "one server answers all of it")]
fn completions_are_those_of_run_alone_and_side_by_side() {
    let dir = tempdir().unwrap();
    let file = dir.path().join("k.dwn");
    stdout(&mut compress("k-proj", &file));
    let server = Server::start(&file, &["--ctx", "128", "--parallel", "3"]);
    assert_eq!(server.ask("GET", "/health", "").0, 200);
    let (_, models) = server.ask("GET", "/v1/models", "");
    says(&models, &["\"test\"", "\"list\""]);

    let prompts = [
        "And it came to pass",
        "In the beginning",
        "Then said the king",
    ];
    let alone: Vec<String> = prompts
        .iter()
        .map(|prompt| {
            let mut run = dwindle(["run", "-n", "24", "--temp", "0", "-t", "1", "-p", prompt]);
            let text = stdout(run.arg(&file));
            text.strip_prefix(prompt).unwrap().trim_end().to_string()
        })
        .collect();
    // More at once than there is room for.
    std::thread::scope(|scope| {
        for round in 0..3 {
            for (prompt, alone) in prompts.iter().zip(&alone) {
                let server = &server;
                scope.spawn(move || {
                    let (status, body) = server.post("/v1/completions", &request(prompt, 24));
                    assert_eq!(status, 200, "{body}");
                    let choice = &body["choices"][0];
                    let text = choice["text"].as_str().unwrap();
                    // Sums over batches of other sizes may round differently, later in a text.
                    assert_eq!(text[..40], alone[..40], "{round}");
                    assert_eq!(choice["finish_reason"], "length");
                    assert_eq!(body["usage"]["completion_tokens"], 24);
                });
            }
        }
    });
    let mut streaming = request(prompts[0], 24);
    streaming["stream"] = true.into();
    streaming["stream_options"] = json!({"include_usage": true});
    let pieces = server.stream("/v1/completions", &streaming);
    let (usage, pieces) = pieces.split_last().unwrap();
    assert_eq!(usage["usage"]["completion_tokens"], 24);
    let text: String = pieces
        .iter()
        .map(|p| p["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert_eq!(text.trim_end(), alone[0]);
    assert!(pieces.len() > 4);
    // A stop text ends the answer before it.
    let word = alone[0].split_whitespace().nth(3).unwrap();
    let mut stopped = request(prompts[0], 24);
    stopped["stop"] = word.into();
    let (_, body) = server.post("/v1/completions", &stopped);
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], alone[0].split(word).next().unwrap());
    assert_eq!(choice["finish_reason"], "stop");
    // A prompt of tokens, and one that nearly fills the context.
    let (_, body) = server.post(
        "/v1/completions",
        &json!({"prompt": vec![5; 120], "max_tokens": 500}),
    );
    assert!(
        body["usage"]["completion_tokens"].as_u64().unwrap() <= 9,
        "{body}"
    );
}

#[test]
fn a_chat_is_answered() {
    let dir = tempdir().unwrap();
    let model = dir.path().join("tiny.gguf");
    tiny(TensorType::F16).write(&model);
    let server = Server::start(&model, &["--ctx", "128"]);
    let chat = json!({
        "model": "test",
        "messages": [
            {"role": "system", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}]},
        ],
        "max_completion_tokens": 4,
        "seed": 1,
        "n": 1,
        "user": "somebody",
    });
    let (status, body) = server.post("/v1/chat/completions", &chat);
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["object"], "chat.completion");
    let content = body["choices"][0]["message"]["content"].clone();
    let mut streaming = chat.clone();
    streaming["stream"] = true.into();
    let pieces = server.stream("/v1/chat/completions", &streaming);
    assert_eq!(pieces[0]["choices"][0]["delta"]["role"], "assistant");
    let text: String = pieces
        .iter()
        .filter_map(|p| p["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(content, text);
}

#[test]
fn what_is_wrong_is_said_and_the_server_lives_on() {
    let server = Server::start(&checkpoint(), &["--ctx", "64", "--parallel", "2"]);
    let path = "/v1/completions";
    let with = |key: &str, value: Value| {
        let mut body = request("And", 4);
        body[key] = value;
        body
    };
    for (body, status, pieces) in [
        (with("colour", 1.into()), 400, vec!["colour"]),
        (with("n", 2.into()), 400, vec!["`n`"]),
        (with("logprobs", 3.into()), 400, vec!["logprobs"]),
        (
            with("temperature", 9.into()),
            400,
            vec!["temperature", "0 to 2"],
        ),
        (with("stop", 5.into()), 400, vec!["OneOrMany"]),
        (with("model", "other".into()), 404, vec!["`test`"]),
        (with("prompt", "".into()), 400, vec!["empty"]),
        (with("prompt", json!([99999])), 400, vec!["99999"]),
        (with("prompt", json!(["a", "b"])), 400, vec!["2 prompts"]),
        (
            with("prompt", "And it came to pass ".repeat(40).into()),
            400,
            vec!["context_length_exceeded", "64", "larger context"],
        ),
        (json!([1]), 400, vec!["no object"]),
        (json!({"max_tokens": 4}), 400, vec!["`prompt` is missing"]),
    ] {
        let (found, answer) = server.post(path, &body);
        assert_eq!(found, status, "{body}: {answer}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
        says(&answer.to_string(), &pieces);
    }
    for (method, path, body, status) in [
        ("POST", path, "{\"prompt\": ", 400),
        ("GET", path, "", 405),
        ("GET", "/v1/nothing", "", 404),
        ("POST", "/v1/chat/completions", "{\"messages\": []}", 400),
    ] {
        let (found, answer) = server.ask(method, path, body);
        assert_eq!(found, status, "{path}: {answer}");
        says(&answer, &["\"error\""]);
    }
    let mut foreign = server.send("GET", "/v1/models", "Host: evil.example\r\n", "");
    assert_eq!(read(&answer(&mut foreign)).0, 403);

    // Clients that go away, in the middle of a stream or of waiting, leave room for others.
    let mut long = request("And it came to pass", 60);
    for stream in [true, false] {
        long["stream"] = stream.into();
        for _ in 0..20 {
            let mut gone = server.send("POST", path, &server.host(), &long.to_string());
            if stream {
                gone.read_exact(&mut [0; 64]).unwrap();
            }
        }
    }
    let start = Instant::now();
    let (status, body) = server.post(path, &request("And", 4));
    assert_eq!(status, 200, "{body}");
    assert!(start.elapsed() < Duration::from_secs(30));
}
