//! Work in parallel, results in order, memory within a budget.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

struct State<T> {
    /// The next job to be taken.
    next: usize,
    /// Cost of the jobs that are taken and whose results are not yet used.
    in_flight: u64,
    results: BTreeMap<usize, T>,
    stopped: bool,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A worker that panicked has stopped everything through its guard; the state is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }
}

/// Stops everything when it is dropped before being defused: by an error or a panic.
struct StopOnDrop<'a, T>(Option<&'a Shared<T>>);

impl<T> Drop for StopOnDrop<'_, T> {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            shared.stop();
        }
    }
}

/// Runs `work` on every job on `threads` threads and hands each result to `sink`, on this thread,
/// in the order of the jobs.
///
/// A job is begun when the costs of all jobs begun and not yet handed over stay within `budget`,
/// or when it is the only one: one job larger than the budget still runs, alone.
///
/// # Errors
/// The first error, in job order, of `work` or `sink`.
pub fn ordered<J: Sync, T: Send, E: Send>(
    jobs: &[J],
    threads: usize,
    budget: u64,
    cost: impl Fn(&J) -> u64 + Sync,
    work: impl Fn(&J) -> Result<T, E> + Sync,
    mut sink: impl FnMut(&J, T) -> Result<(), E>,
) -> Result<(), E> {
    let shared = Shared {
        state: Mutex::new(State {
            next: 0,
            in_flight: 0,
            results: BTreeMap::new(),
            stopped: false,
        }),
        changed: Condvar::new(),
    };
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| worker(&shared, jobs, budget, &cost, &work));
        }
        let guard = StopOnDrop(Some(&shared));
        for (index, job) in jobs.iter().enumerate() {
            let Some(result) = wait_for(&shared, index) else {
                break; // a worker panicked; the scope passes it on
            };
            sink(job, result?)?;
            shared.lock().in_flight -= cost(job);
            shared.changed.notify_all();
        }
        drop(guard);
        Ok(())
    })
}

fn wait_for<T>(shared: &Shared<T>, index: usize) -> Option<T> {
    let mut state = shared.lock();
    loop {
        if let Some(result) = state.results.remove(&index) {
            return Some(result);
        }
        if state.stopped {
            return None;
        }
        state = shared
            .changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner);
    }
}

fn worker<J, T>(
    shared: &Shared<T>,
    jobs: &[J],
    budget: u64,
    cost: &impl Fn(&J) -> u64,
    work: &impl Fn(&J) -> T,
) {
    let mut guard = StopOnDrop(Some(shared));
    loop {
        let index = {
            let mut state = shared.lock();
            loop {
                if state.stopped || state.next == jobs.len() {
                    guard.0 = None;
                    return;
                }
                let price = cost(&jobs[state.next]);
                if state.in_flight == 0 || state.in_flight.saturating_add(price) <= budget {
                    state.in_flight += price;
                    break;
                }
                state = shared
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            state.next += 1;
            state.next - 1
        };
        let result = work(&jobs[index]);
        shared.lock().results.insert(index, result);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn results_come_in_order_and_within_the_budget() {
        let jobs: Vec<u64> = (0..200).map(|i| i % 7 + 1).collect();
        let running = AtomicU64::new(0);
        let peak = AtomicU64::new(0);
        let mut seen = Vec::new();
        ordered(
            &jobs,
            4,
            10,
            |job| *job,
            |job| {
                let now = running.fetch_add(*job, Ordering::SeqCst) + job;
                peak.fetch_max(now, Ordering::SeqCst);
                std::thread::yield_now();
                Ok::<u64, ()>(*job)
            },
            |job, result| {
                running.fetch_sub(*job, Ordering::SeqCst);
                seen.push(result);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(seen, jobs);
        assert!(peak.load(Ordering::SeqCst) <= 10);
    }

    #[test]
    fn a_job_above_the_budget_runs_alone_and_errors_end_the_work() {
        let jobs = [1u64, 100, 1];
        let mut seen = 0;
        let result = ordered(
            &jobs,
            2,
            10,
            |job| *job,
            |job| if *job == 100 { Err("big") } else { Ok(()) },
            |_, ()| {
                seen += 1;
                Ok(())
            },
        );
        assert_eq!((result, seen), (Err("big"), 1));
    }

    #[test]
    #[should_panic(expected = "a scoped thread panicked")]
    fn a_panic_is_passed_on() {
        let _ = ordered(
            &[1u64, 2],
            2,
            10,
            |_| 1,
            |_| -> Result<(), ()> { panic!("worker") },
            |_, ()| Ok(()),
        );
    }
}
