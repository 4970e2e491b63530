//! Clients that mean it ill. Each is called again and again, and says what became of it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A client: the server's address, the number of the round, and where outcomes go.
type Client = fn(&str, usize, &dyn Fn(&str));

/// Every client, by name.
pub const CLIENTS: [(&str, Client); 6] = [
    ("long prompt", long_prompt),
    ("half-open", half_open),
    ("flood", flood),
    ("disconnect", disconnect),
    ("odd body", odd_body),
    ("unread", unread),
];

/// Connections that stay half-open at a time: more than the server has descriptors.
const CROWD: usize = 300;

/// Requests that come at once: more than may wait.
const FLOOD: usize = 200;

/// How long a hostile client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

fn head(length: usize) -> String {
    format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    )
}

fn connect(address: &str) -> Option<TcpStream> {
    let stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(stream)
}

/// Sends bytes; a server that has refused already may have closed the connection.
fn send(address: &str, bytes: &[u8]) -> Option<TcpStream> {
    let mut stream = connect(address)?;
    // The answer may be there all the same.
    let _ = stream.write_all(bytes);
    Some(stream)
}

/// The status of an answer.
fn status(stream: Option<TcpStream>) -> String {
    let mut line = [0; 12];
    match stream.map(|mut stream| stream.read_exact(&mut line)) {
        Some(Ok(())) => String::from_utf8_lossy(&line[9..]).into_owned(),
        _ => "closed".into(),
    }
}

fn post(address: &str, body: &str) -> Option<TcpStream> {
    send(address, format!("{}{body}", head(body.len())).as_bytes())
}

/// Texts from a kilobyte to sixteen megabytes, of words and of one character.
fn long_prompt(address: &str, round: usize, outcome: &dyn Fn(&str)) {
    let bytes = 1024 << (round % 15);
    let word = ["And it came to pass ", "=", "漢", " "][round / 15 % 4];
    let text = word.repeat(bytes / word.len());
    let body = format!("{{\"prompt\": \"{text}\", \"max_tokens\": 1}}");
    outcome(&status(post(address, &body)));
}

/// Connections that stop in the middle of a request, and stay.
fn half_open(address: &str, round: usize, outcome: &dyn Fn(&str)) {
    let halves = [
        String::new(),
        "GET /health HTTP/1.1\r\nHost: loc".into(),
        format!("{}{{\"prompt\": ", head(1000)),
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"
            .into(),
    ];
    let half = halves[round % halves.len()].as_bytes();
    let crowd: Vec<_> = (0..CROWD).map(|_| send(address, half)).collect();
    // The first ones have had to give way by now, or will.
    let gone = crowd.into_iter().next().flatten();
    outcome(&status(gone));
}

/// Many requests at once.
fn flood(address: &str, _: usize, outcome: &dyn Fn(&str)) {
    let body = "{\"prompt\": \"And\", \"max_tokens\": 8}";
    let crowd: Vec<_> = (0..FLOOD).map(|_| post(address, body)).collect();
    for client in crowd {
        outcome(&status(client));
    }
}

/// Long answers, streamed and whole, that nobody waits for.
fn disconnect(address: &str, round: usize, outcome: &dyn Fn(&str)) {
    let stream = round.is_multiple_of(2);
    let body = format!("{{\"prompt\": \"And\", \"max_tokens\": 4000, \"stream\": {stream}}}");
    let client = post(address, &body);
    if stream {
        outcome(&status(client));
    } else {
        drop(client);
        outcome("left");
    }
}

/// What no client should send.
fn odd_body(address: &str, round: usize, outcome: &dyn Fn(&str)) {
    let zeros = format!("{{\"prompt\": [{}0]}}", "0,".repeat(200_000));
    let bodies = [
        "[".repeat(200_000),
        "{\"a\":".repeat(50_000),
        zeros,
        format!(
            "{{\"prompt\": \"a\", \"stop\": \"{}\"}}",
            "a".repeat(200_000)
        ),
        format!("{{\"prompt\": \"a\", \"{}\": 1}}", "é".repeat(100_000)),
        "{\"prompt\": \"a\\u0000\\ud800\"}".into(),
        "{\"prompt\": \"a\", \"temperature\": 1e-40, \"max_tokens\": 4}".into(),
        "{\"prompt\": \"a\", \"temperature\": 1e400}".into(),
        "{\"prompt\": [-1, 99999999999]}".into(),
        String::new(),
    ];
    let requests: [Vec<u8>; 6] = [
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        [head(3).as_bytes(), &[0xff, 0xfe, 0x00]].concat(),
        [head(usize::MAX).as_bytes(), b"{"].concat(),
        format!("GET /health HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(200_000))
            .into(),
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
            .to_vec(),
        [0; 100_000].to_vec(),
    ];
    let round = round % (bodies.len() + requests.len());
    let client = match bodies.get(round) {
        Some(body) => post(address, body),
        None => send(address, &requests[round - bodies.len()]),
    };
    outcome(&status(client));
}

/// Streams that nobody reads, and requests behind one another whose answers nobody reads.
fn unread(address: &str, round: usize, outcome: &dyn Fn(&str)) {
    let body = "{\"prompt\": \"And\", \"max_tokens\": 200, \"stream\": true}";
    let client = if round.is_multiple_of(2) {
        post(address, body)
    } else {
        let one = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n";
        send(address, one.repeat(20_000).as_bytes())
    };
    std::thread::sleep(Duration::from_millis(200));
    drop(client);
    outcome("left");
}
