//! The server that is put to the test, and a client that means it well.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::shell::root;

/// Descriptors of the server: fewer than its clients have connections.
const DESCRIPTORS: u32 = 256;

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the server may take to end, with answers open.
const ENDING: Duration = Duration::from_secs(60);

/// A server on the fixture.
pub struct Server {
    process: Child,
    pub address: String,
}

impl Server {
    pub fn start() -> Result<Server, String> {
        let script = format!("ulimit -n {DESCRIPTORS} && exec \"$0\" \"$@\"");
        let mut process = Command::new("sh")
            .args(["-c", &script])
            .arg(root().join("target/release/dwindle"))
            .args(["serve", "--port", "0", "--ctx", "4096", "--name", "soak"])
            .args(["--threads", "1"])
            .arg(root().join("fixtures/kjv-llama"))
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("`dwindle serve` does not start: {e}"))?;
        let mut line = String::new();
        let mut lines = BufReader::new(process.stderr.take().ok_or("there is no stderr")?);
        lines.read_line(&mut line).map_err(|e| e.to_string())?;
        // What else it prints is shown.
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                eprintln!("serve: {line}");
            }
        });
        let address = line
            .split("http://")
            .nth(1)
            .and_then(|a| a.split('/').next());
        let address = address.ok_or_else(|| format!("`dwindle serve` says: {line}"))?;
        Ok(Server {
            address: address.to_string(),
            process,
        })
    }

    /// Status and body of an answer.
    pub fn post(&self, body: &str) -> Result<(u16, String), String> {
        self.send("POST", "/v1/completions", body, PATIENCE)
    }

    /// How long the server takes to say that it is well.
    pub fn health(&self) -> Option<Duration> {
        let start = Instant::now();
        let answer = self.send("GET", "/health", "", PATIENCE);
        answer.is_ok_and(|a| a.0 == 200).then(|| start.elapsed())
    }

    /// The text of an answer; a server that is busy is asked again.
    pub fn ask(&self, body: &str) -> Result<String, String> {
        let start = Instant::now();
        loop {
            let (status, answer) = self.post(body)?;
            if status == 503 && start.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_secs(1));
                continue;
            }
            let json: Value = serde_json::from_str(&answer).map_err(|e| e.to_string())?;
            let text = json["choices"][0]["text"].as_str();
            return text.map(str::to_string).ok_or(answer);
        }
    }

    fn send(
        &self,
        method: &str,
        path: &str,
        body: &str,
        patience: Duration,
    ) -> Result<(u16, String), String> {
        let failed = |e: std::io::Error| e.to_string();
        let mut stream = TcpStream::connect(&self.address).map_err(failed)?;
        stream.set_read_timeout(Some(patience)).map_err(failed)?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        )
        .map_err(failed)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map_err(failed)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("half an answer")?;
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        Ok((status.ok_or("an answer without a status")?, body.into()))
    }

    /// Resident memory in MiB; an error where the process has ended.
    pub fn memory(&self) -> Result<u64, String> {
        let id = self.process.id().to_string();
        let output = Command::new("ps")
            .args(["-o", "rss=", "-p", &id])
            .output()
            .map_err(|e| format!("`ps` does not start: {e}"))?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
        match text.parse::<u64>() {
            Ok(kib) if kib > 0 => Ok(kib / 1024),
            _ => Err("the server has died".into()),
        }
    }

    /// Ctrl-C: the exit code, -1 for none, and how long it took.
    pub fn end(&mut self) -> Result<(i32, Duration), String> {
        let start = Instant::now();
        let id = self.process.id().to_string();
        let sent = Command::new("kill").args(["-INT", &id]).status();
        sent.map_err(|e| format!("`kill` does not start: {e}"))?;
        while start.elapsed() < ENDING {
            if let Some(status) = self.process.try_wait().map_err(|e| e.to_string())? {
                return Ok((status.code().unwrap_or(-1), start.elapsed()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok((-1, start.elapsed()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already, mostly.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
