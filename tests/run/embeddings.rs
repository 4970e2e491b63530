//! Encoders under the commands that run a model.

use serde_json::Value;
use tempfile::tempdir;

use crate::common::program::{dwindle, fixture, refusal, says, stdout};
use crate::common::record::Record;

/// Factors in every matrix of a layer.
const RECIPE: &str = "type = \"f32\"\n[[rule]]\ntype = \"f32\"\nroles = [\"attn_q\", \"attn_k\", \"attn_v\", \
     \"attn_output\", \"ffn_up\", \"ffn_down\"]\nmethod = \"svd\"\nrank = 2\n";

fn parsed(command: &mut assert_cmd::Command) -> Value {
    serde_json::from_str(&stdout(command)).unwrap()
}

#[test]
fn encoders_embed_and_are_compared_and_continue_nothing() {
    let dir = tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("recipe.toml"), RECIPE).unwrap();
    let text = fixture("kjv-heldout.txt");
    for record in Record::encoders() {
        record.write(&at(&record.name));
        let convert = |options: [&str; 2], file: &str| {
            let mut command = dwindle(["compress"]);
            command.args(options).arg(at(&record.name));
            stdout(command.arg("-o").arg(at(file)));
        };
        convert(["--preset", "f16"], "whole.gguf");
        convert(["--preset", "q4_0"], "small.gguf");
        convert(["--recipe", at("recipe.toml").to_str().unwrap()], "x.dwn");

        let embed = |file: &str, more: &[&str]| {
            let mut command = dwindle(["embed", "-t", "1", "-p", "and it came to pass"]);
            command.args(["-p", "the king"]).args(more).arg(at(file));
            command
        };
        let report = parsed(&mut embed("whole.gguf", &["--json"]));
        assert_eq!(report["dimensions"], 64);
        assert_eq!(report["embeddings"].as_array().unwrap().len(), 2);
        let lines = stdout(&mut embed("whole.gguf", &[]));
        let first: Vec<&str> = lines.lines().next().unwrap().split(' ').collect();
        assert_eq!(first.len(), 64);
        assert_eq!(first[0].parse::<f64>().unwrap(), report["embeddings"][0][0]);
        says(
            &stdout(&mut embed("whole.gguf", &["--cosines"])),
            &["the king"],
        );

        let cosine = |file: &str, reference: &str, options: &[&str]| {
            let mut command = dwindle(["eval", "--json", "--chunks", "12", "-t", "1"]);
            command.args(options).arg(at(file)).arg("--text").arg(&text);
            parsed(command.arg("--reference").arg(at(reference)))
        };
        let same = cosine("whole.gguf", &record.name, &[]);
        assert!(same["cosine"]["value"].as_f64().unwrap() > 0.9999, "{same}");
        assert_eq!(same["texts"], 12);
        let small = cosine("small.gguf", &record.name, &[]);
        let found = small["cosine"]["value"].as_f64().unwrap();
        assert!((0.5..0.99999).contains(&found), "{small}");
        // Executed or multiplied out, factors give the same.
        let values = [&[][..], &["--multiplied-out"]].map(|options| {
            let found = cosine("x.dwn", "whole.gguf", options);
            found["cosine"]["value"].as_f64().unwrap()
        });
        assert!((values[0] - values[1]).abs() < 1e-3, "{values:?}");

        let mut run = dwindle(["run", "-p", "the", "-n", "4"]);
        says(&refusal(run.arg(at("whole.gguf")), 3), &["dwindle embed"]);
        // There is no 513th position.
        let mut calibrate = dwindle(["calibrate", "--ctx", "520", "--chunks", "1", "-t", "1"]);
        calibrate.arg(at("whole.gguf")).arg("--text").arg(&text);
        let refused = refusal(calibrate.arg("-o").arg(at("x.safetensors")), 3);
        says(&refused, &["a position is", "512"]);
        let mut eval = dwindle(["eval"]);
        eval.arg(at("whole.gguf")).arg("--text").arg(&text);
        says(&refusal(&mut eval, 3), &["reference"]);
    }
}
