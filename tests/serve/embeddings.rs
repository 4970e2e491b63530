//! `/v1/embeddings` as clients meet it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::common::program::{checkpoint, dwindle, says, stdout};
use crate::common::record::Record;
use crate::common::server::{Server, request};

#[test]
fn texts_are_embedded_as_the_command_does() {
    let dir = tempdir().unwrap();
    let (model, file) = (dir.path().join("tiny"), dir.path().join("x.gguf"));
    Record::of("bert").write(&model);
    let mut command = dwindle(["compress", "--preset", "f16"]);
    stdout(command.arg(&model).arg("-o").arg(&file));
    let server = Server::start(&file, &[]);
    let mut command = dwindle(["embed", "--json", "-t", "1", "-p", "the king"]);
    let alone: Value = serde_json::from_str(&stdout(command.arg(&file))).unwrap();

    let ask = |body: Value| server.post("/v1/embeddings", &body);
    let (status, body) = ask(json!({"model": "test", "input": ["the king", "and"]}));
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["data"][0]["embedding"], alone["embeddings"][0]);
    assert_eq!(body["data"][1]["index"], 1);
    let tokens = alone["tokens"][0].as_u64().unwrap();
    assert_eq!(body["usage"]["total_tokens"], tokens + 3);
    let (_, coded) = ask(json!({"input": "the king", "encoding_format": "base64", "user": "a"}));
    let bytes = BASE64_STANDARD
        .decode(coded["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let values = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| f32::from_le_bytes(*b));
    let expected = alone["embeddings"][0].as_array().unwrap().iter();
    let expected: Vec<f32> = expected.map(|v| v.as_f64().unwrap() as f32).collect();
    assert_eq!(values.collect::<Vec<_>>(), expected);
    // Many texts, and more bytes than one of them may have.
    let (status, many) = ask(json!({"input": vec!["the king ".repeat(100); 200]}));
    assert_eq!(status, 200, "{many}");
    assert_eq!(many["data"].as_array().unwrap().len(), 200);
    let (_, numbers) = ask(json!({"input": [[2, 5, 3], [2, 6, 3]]}));
    assert_eq!(numbers["data"].as_array().unwrap().len(), 2);

    for (body, problem) in [
        (json!({}), "input"),
        (json!({"input": 7}), "input"),
        (json!({"input": []}), "expected 1 to 2048"),
        (json!({"input": [[]]}), "empty"),
        (json!({"input": [1024]}), "no token 1024"),
        (json!({"input": vec![5; 600]}), "600 tokens"),
        (json!({"input": "a", "dimensions": 32}), "64"),
        (
            json!({"input": "a", "encoding_format": "hex"}),
            "encoding_format",
        ),
        (json!({"input": "a", "temperature": 1}), "temperature"),
    ] {
        let (status, found) = ask(body);
        assert_eq!(status, 400, "{found}");
        says(&found.to_string(), &[problem]);
    }
    assert_eq!(ask(json!({"input": "a", "model": "other"})).0, 404);
    let (status, body) = server.post("/v1/completions", &request("the", 4));
    assert_eq!(status, 400);
    says(&body.to_string(), &["/v1/embeddings"]);
}

#[test]
fn a_model_that_continues_texts_embeds_none() {
    let server = Server::start(&checkpoint(), &["--ctx", "64"]);
    let (status, body) = server.post("/v1/embeddings", &json!({"input": "the king"}));
    assert_eq!(status, 400);
    says(&body.to_string(), &["/v1/completions"]);
}
