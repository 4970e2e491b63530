//! `dwindle serve` in a process of its own, and the plainest client there is.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use super::program::DWINDLE;

/// How long a test waits for what must come; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that ends with the test.
pub struct Server {
    process: Option<Child>,
    stderr: BufReader<ChildStderr>,
    pub address: String,
    /// What it printed before its address.
    pub warnings: Vec<String>,
}

impl Server {
    /// Serves a model as `test`.
    pub fn start(file: &Path, options: &[&str]) -> Server {
        Server::run(Command::new(DWINDLE), file, options)
    }

    /// As [`Self::start`], in a process that may have only so many descriptors.
    pub fn with_descriptors(limit: u32, file: &Path, options: &[&str]) -> Server {
        let mut shell = Command::new("sh");
        let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
        shell.args(["-c", &script, DWINDLE]);
        Server::run(shell, file, options)
    }

    fn run(mut command: Command, file: &Path, options: &[&str]) -> Server {
        let mut process = command
            .args(["serve", "--port", "0", "-t", "1", "--name", "test"])
            .args(options)
            .arg(file)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let mut warnings = Vec::new();
        let address = loop {
            let mut line = String::new();
            stderr.read_line(&mut line).unwrap();
            assert!(!line.is_empty(), "{warnings:?}");
            match line.split_once("http://") {
                Some((_, address)) => break address.split('/').next().unwrap().to_string(),
                None => warnings.push(line),
            }
        };
        Server {
            process: Some(process),
            stderr,
            address,
            warnings,
        }
    }

    /// A connection on which nothing has been said.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A connection on which this text has been sent.
    pub fn say(&self, text: &str) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }

    /// A whole request, with lines of header of one's own (each ends in `\r\n`).
    pub fn send(&self, method: &str, path: &str, header: &str, body: &str) -> TcpStream {
        self.say(&format!(
            "{method} {path} HTTP/1.1\r\n{header}Content-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ))
    }

    /// The line of header that every client sends.
    pub fn host(&self) -> String {
        format!("Host: {}\r\n", self.address)
    }

    /// Status and body.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        read(&answer(&mut self.send(method, path, &self.host(), body)))
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.ask("POST", path, &body.to_string());
        (status, serde_json::from_str(&body).expect(&body))
    }

    /// The pieces of a stream.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, body) = self.ask("POST", path, &body.to_string());
        assert_eq!(status, 200, "{body}");
        let data = body.lines().filter_map(|l| l.strip_prefix("data: "));
        let mut pieces: Vec<&str> = data.collect();
        assert_eq!(pieces.pop(), Some("[DONE]"));
        pieces
            .iter()
            .map(|p| serde_json::from_str(p).unwrap())
            .collect()
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        self.signal("-INT");
    }

    /// Ends it at once, without a chance to do anything.
    pub fn kill(self) {
        self.signal("-KILL");
        let _ = self.end();
    }

    fn signal(&self, signal: &str) {
        let id = self.process.as_ref().unwrap().id().to_string();
        let status = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(status.success());
    }

    /// The next line that the server prints.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line
    }

    /// Waits for the process to end by itself.
    #[track_caller]
    pub fn end(mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        let id = process.id().to_string();
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || ended.send(process.wait()));
        match end.recv_timeout(PATIENCE) {
            Ok(status) => status.unwrap(),
            Err(_) => {
                let _ = Command::new("kill").args(["-KILL", &id]).status();
                panic!("the server does not end");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// All that comes until the server closes the connection.
#[track_caller]
pub fn answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        // A server that has not read everything resets the connection behind its answer.
        Err(e) if answer.is_empty() => panic!("no answer: {e}"),
        _ => String::from_utf8(answer).unwrap(),
    }
}

/// Takes an answer apart, and the chunks of its body together.
#[track_caller]
pub fn read(answer: &str) -> (u16, String) {
    let (head, mut rest) = answer.split_once("\r\n\r\n").expect(answer);
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    if !head.to_lowercase().contains("transfer-encoding: chunked") {
        return (status, rest.to_string());
    }
    let mut body = String::new();
    while let Some((len, data)) = rest.split_once("\r\n") {
        let len = usize::from_str_radix(len, 16).unwrap();
        body.push_str(&data[..len]);
        rest = data[len..].trim_start_matches("\r\n");
    }
    (status, body)
}

/// A completion that is the same every time.
pub fn request(prompt: &str, tokens: u32) -> Value {
    json!({"model": "test", "prompt": prompt, "max_tokens": tokens, "temperature": 0})
}
