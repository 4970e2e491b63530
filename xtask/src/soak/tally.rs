//! What became of every request.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Counts by client and outcome, and the times of `/health`.
#[derive(Default)]
pub struct Tally {
    counts: Mutex<BTreeMap<String, u64>>,
    health: Mutex<Vec<Option<Duration>>>,
}

impl Tally {
    pub fn add(&self, client: &str, outcome: &str) {
        let mut counts = lock(&self.counts);
        *counts.entry(format!("{client} {outcome}")).or_default() += 1;
    }

    pub fn count(&self, what: &str) -> u64 {
        lock(&self.counts).get(what).copied().unwrap_or(0)
    }

    /// A time of `/health`, `None` where no answer came.
    pub fn health(&self, time: Option<Duration>) {
        lock(&self.health).push(time);
    }

    pub fn is_unwell(&self, limit: Duration) -> bool {
        let times = lock(&self.health);
        times.is_empty() || times.iter().any(|t| t.is_none_or(|t| t > limit))
    }

    pub fn print(&self) {
        println!();
        for (what, count) in lock(&self.counts).iter() {
            println!("{count:>9}  {what}");
        }
        let times = lock(&self.health);
        let mut answered: Vec<Duration> = times.iter().flatten().copied().collect();
        answered.sort();
        let at = |part: f64| match answered.len() {
            0 => f64::NAN,
            n => answered[((n - 1) as f64 * part) as usize].as_secs_f64() * 1000.0,
        };
        println!(
            "/health: {} times, {} without an answer; median {:.1} ms, 99 % {:.1} ms, worst {:.1} ms",
            times.len(),
            times.len() - answered.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked has counted, or has not.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
