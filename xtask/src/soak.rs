//! `dwindle serve` under clients that mean it ill, on loopback, for minutes. All the while it must
//! say within a second that it is well, stay within its memory, and in the end still answer
//! rightly.

mod hostile;
mod server;
mod tally;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hostile::CLIENTS;
use server::Server;
use tally::Tally;

const MINUTES: f64 = 10.0;

/// The longest time for `/health`.
const HEALTH: Duration = Duration::from_secs(1);

/// What the server's memory may grow by: the worst that the requests it takes at once may hold.
const GROWTH: u64 = 1 << 30;

/// A question whose answer is the same every time.
const QUESTION: &str = r#"{"prompt": "And it came to pass", "max_tokens": 24, "temperature": 0}"#;

pub fn main(rest: &[&str]) -> Result<(), String> {
    let minutes = match rest {
        [] => MINUTES,
        [minutes] => minutes
            .parse()
            .ok()
            .filter(|m| (0.0..=1440.0).contains(m))
            .ok_or_else(|| format!("`{minutes}` is no number of minutes up to 1440"))?,
        _ => return Err("usage: cargo xtask soak [MINUTES]".into()),
    };
    let mut server = Server::start()?;
    let expected = server.ask(QUESTION)?;
    let before = server.memory()?;
    eprintln!(
        "{} minutes of hostile clients at {}",
        minutes, server.address
    );
    let tally = Tally::default();
    let most = soak(&server, &tally, Duration::from_secs_f64(minutes * 60.0))?;
    let found = server.ask(QUESTION)?;
    let after = server.memory()?;
    let (code, ending) = server.end()?;
    tally.print();
    println!("memory: {before} MiB before, {most} at most, {after} after");
    println!(
        "Ctrl-C: exit code {code} after {:.1} s",
        ending.as_secs_f64()
    );
    let complaints = [
        (
            tally.is_unwell(HEALTH),
            "/health failed or took over a second",
        ),
        (found != expected, "the last answer is not the first one"),
        (
            (most - before.min(most)) << 20 > GROWTH,
            "memory has grown over its bound",
        ),
        (code != 0, "the server did not end by itself"),
        (
            tally.count("honest 200") == 0,
            "no honest client was answered",
        ),
    ];
    let complaints: Vec<&str> = complaints
        .into_iter()
        .filter_map(|(is_so, what)| is_so.then_some(what))
        .collect();
    if complaints.is_empty() {
        println!("the server has stood it");
        return Ok(());
    }
    Err(complaints.join("; "))
}

/// Lets all clients loose, and gives the most memory that was seen, in MiB.
fn soak(server: &Server, tally: &Tally, time: Duration) -> Result<u64, String> {
    let is_over = AtomicBool::new(false);
    let goes_on = || !is_over.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        for (name, client) in CLIENTS {
            scope.spawn(move || {
                let mut round = 0;
                while goes_on() {
                    client(&server.address, round, &|outcome| tally.add(name, outcome));
                    round += 1;
                }
            });
        }
        scope.spawn(|| {
            while goes_on() {
                tally.health(server.health());
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        scope.spawn(|| {
            while goes_on() {
                let outcome = server.post(QUESTION).map(|(status, _)| status.to_string());
                tally.add("honest", &outcome.unwrap_or_else(|_| "no answer".into()));
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        let start = Instant::now();
        let mut most = Ok(0);
        while start.elapsed() < time {
            std::thread::sleep(Duration::from_millis(500));
            match (server.memory(), &mut most) {
                (Ok(now), Ok(most)) => *most = now.max(*most),
                (failed, most) => {
                    *most = failed;
                    break;
                }
            }
        }
        is_over.store(true, Ordering::Relaxed);
        most
    })
}
