//! What README and docs/recipes.md show works as printed.
//!
//! The commands run in a folder where a part of the fixture stands in for the model and the texts,
//! so that commands that take minutes on a real model take seconds.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dwindle_formats::gguf::TensorType;
use tempfile::{TempDir, tempdir};

use crate::common::markdown;
use crate::common::markdown::{Block, blocks};
use crate::common::program::{DWINDLE, checkpoint, dwindle, fixture, says, stdout};
use crate::common::tiny::mixture;

/// Programs that the README names, but that are not run here: they install or build, for minutes and
/// from the network.
const NOT_RUN: [&str; 2] = ["cargo", "sudo"];

/// Bytes of each text: some twenty chunks.
const TEXT: usize = 32_000;

/// A folder with `fixtures/` in small: the model without these of its four blocks, the beginning of
/// each text.
fn stage(without: &[u32]) -> TempDir {
    let dir = tempdir().unwrap();
    let fixtures = dir.path().join("fixtures");
    std::fs::create_dir(&fixtures).unwrap();
    for name in ["kjv-calibration.txt", "kjv-heldout.txt"] {
        let text = std::fs::read(fixture(name)).unwrap();
        std::fs::write(fixtures.join(name), &text[..TEXT]).unwrap();
    }
    let recipe = dir.path().join("fewer-blocks.toml");
    let wish = format!("type = \"bf16\"\n[structure]\ndrop = {without:?}\n");
    std::fs::write(&recipe, wish).unwrap();
    let file = dir.path().join("fewer-blocks.gguf");
    let mut compress = dwindle(["compress"]);
    compress.arg(checkpoint()).arg("--recipe").arg(&recipe);
    stdout(compress.arg("-o").arg(&file));
    let mut export = dwindle(["export", "--format", "hf"]);
    export.arg(&file).arg("--checkpoint").arg(checkpoint());
    stdout(export.arg("-o").arg(fixtures.join("kjv-llama")));
    dir
}

/// A shell in this folder that finds the program as a user's does.
fn shell(folder: &Path) -> Command {
    let program = Path::new(DWINDLE).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut shell = Command::new("sh");
    shell.current_dir(folder);
    shell.env("PATH", format!("{}:{path}", program.display()));
    // Measurements that are kept between runs stay in the folder.
    shell.env("XDG_CACHE_HOME", folder.join("cache"));
    shell
}

fn page(name: &str) -> Vec<Block> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    blocks(&std::fs::read_to_string(path).unwrap())
}

#[test]
fn the_commands_of_the_readme_run_as_printed() {
    let dir = stage(&[1, 2, 3]);
    let mut ran = 0;
    for block in page("README.md") {
        match block.language.as_str() {
            "toml" => std::fs::write(dir.path().join(block.file_name()), &block.text).unwrap(),
            "sh" if block.text.contains("dwindle serve") => serve(dir.path(), &block.text),
            "sh" | "console" => {
                let mut words = block.text.lines().filter_map(|l| l.split(' ').next());
                if !words.any(|word| NOT_RUN.contains(&word)) {
                    run(dir.path(), &block.text);
                    ran += 1;
                }
            }
            _ => {}
        }
    }
    assert!(ran >= 8, "only {ran} blocks of commands were found");
}

#[test]
fn the_commands_of_the_page_on_saved_prompts_run_as_printed() {
    let dir = stage(&[2, 3]);
    let prepare = "ln -s fixtures/kjv-llama Qwen3-0.6B; ln -s fixtures/kjv-calibration.txt calibration.txt; \
        ln -s fixtures/kjv-heldout.txt test.txt; \
        dwindle run Qwen3-0.6B -p 'In the beginning' -n 40 --save-session slot.bin";
    run(dir.path(), prepare);
    let blocks = page("docs/cache.md")
        .into_iter()
        .filter(|block| block.language == "sh");
    let ran = blocks.map(|block| match block.text.contains("dwindle serve") {
        true => serve(dir.path(), &block.text),
        false => run(dir.path(), &block.text),
    });
    assert_eq!(ran.count(), 6);
}

fn run(folder: &Path, script: &str) {
    let output = shell(folder).args(["-euc", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the server of the first line, on a free port, and sends it the request of the second.
fn serve(folder: &Path, script: &str) {
    let lines: Vec<&str> = script.lines().collect();
    let [server, request] = lines[..] else {
        panic!("expected a server and a request: {script}");
    };
    let server = server.strip_suffix(" &").expect("a server that goes on");
    let server = server.replace("--port 8080", "--port 0");
    let curl = "curl --retry 9 --retry-connrefused http://127.0.0.1:8080";
    let request = request.strip_prefix(curl).unwrap();
    let (path, body) = request.split_once(" -d '").unwrap();
    let body = body.strip_suffix('\'').unwrap();

    let mut command = shell(folder);
    command.args(["-euc", &format!("exec {server}")]);
    let mut server = Server(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut said = String::new();
    let stderr = server.0.stderr.take().unwrap();
    BufReader::new(stderr).read_line(&mut said).unwrap();
    let address = said.split("http://").nth(1).expect(&said);
    let address = address.split('/').next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    // The media type is what curl says of `-d`.
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: \
         application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    says(&answer, &["HTTP/1.1 200", "\"text_completion\""]);
}

#[test]
fn the_recipes_of_the_documents_resolve() {
    // A recipe may drop a block.
    let dir = stage(&[1, 2]);
    let model = dir.path().join("fixtures/kjv-llama");
    let text = dir.path().join("fixtures/kjv-calibration.txt");
    let stats = calibrate(&model, &text, dir.path().join("stats.safetensors"));
    let diagnosis = dir.path().join("diagnosis.json");
    let mut diagnose = dwindle(["diagnose", "--ctx", "64", "--chunks", "1"]);
    diagnose.arg(&model).arg("--text").arg(&text);
    diagnose.arg("--stats").arg(&stats);
    stdout(diagnose.arg("-o").arg(&diagnosis));

    // Experts leave where there are some.
    let experts = dir.path().join("mixture.gguf");
    mixture(TensorType::F32).write(&experts);
    let routed = calibrate(&experts, &text, dir.path().join("experts.safetensors"));

    let recipes: Vec<Block> = page("docs/recipes.md")
        .into_iter()
        .filter(|block| block.language == "toml")
        .collect();
    assert!(recipes.len() >= 8, "only {} recipes", recipes.len());
    for recipe in recipes {
        let file = dir.path().join(recipe.file_name());
        std::fs::write(&file, &recipe.text).unwrap();
        let mut compress = dwindle(["compress", "--dry-run", "--recipe"]);
        compress.arg(&file);
        if recipe.text.contains("experts =") {
            compress.arg(&experts).arg("--stats").arg(&routed);
        } else {
            compress.arg(&model).arg("--stats").arg(&stats);
            compress.arg("--diagnosis").arg(&diagnosis);
        }
        if recipe.text.contains("key_length") || recipe.text.contains("drop") {
            compress.arg("--text").arg(&text);
        }
        stdout(&mut compress);
    }
}

fn calibrate(model: &Path, text: &Path, stats: PathBuf) -> PathBuf {
    let mut calibrate = dwindle(["calibrate", "--ctx", "64", "--chunks", "8"]);
    calibrate.arg(model).arg("--text").arg(text);
    stdout(calibrate.arg("-o").arg(&stats));
    stats
}

#[test]
fn links_of_the_documents_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for page in [
        "README.md",
        "CONTRIBUTING.md",
        "docs/recipes.md",
        "docs/running.md",
        "docs/measurements.md",
        "docs/notes.md",
    ] {
        let path = root.join(page);
        let text = std::fs::read_to_string(&path).unwrap();
        for target in markdown::links(&text) {
            let file = target.split('#').next().unwrap();
            let file = path.parent().unwrap().join(file);
            assert!(file.exists(), "{page} links to `{target}`");
        }
    }
}
