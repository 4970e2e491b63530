//! How much memory the process has from stage to stage.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::eval::memory_now;

/// Between samples, at first.
const EVERY: Duration = Duration::from_millis(50);
/// Samples at most: then every other one goes, and they are taken half as often.
const MOST: usize = 2000;

/// The memory at one time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds from the beginning.
    pub seconds: f64,
    /// Resident bytes.
    pub bytes: u64,
}

/// The most memory of a stage, in all its turns.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    /// The stage.
    pub stage: &'static str,
    /// Seconds that it took.
    pub seconds: f64,
    /// The most resident bytes in it.
    pub most: u64,
}

/// Samples the memory of this process until it is finished.
#[derive(Debug)]
pub struct Timeline {
    seen: Arc<Mutex<Seen>>,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Seen {
    begin: Instant,
    entered: Instant,
    stage: Option<usize>,
    stages: Vec<Memory>,
    samples: Vec<Sample>,
    every: Duration,
}

impl Timeline {
    /// Begins to sample.
    ///
    /// # Errors
    /// There is no thread.
    pub fn begin() -> std::io::Result<Timeline> {
        let now = Instant::now();
        let seen = Arc::new(Mutex::new(Seen {
            begin: now,
            entered: now,
            stage: None,
            stages: Vec::new(),
            samples: Vec::new(),
            every: EVERY,
        }));
        let (end, ended) = channel::<()>();
        let theirs = Arc::clone(&seen);
        let thread = std::thread::Builder::new()
            .name("memory".into())
            .spawn(move || {
                let mut every = EVERY;
                while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                    let mut seen = lock(&theirs);
                    seen.sample();
                    every = seen.every;
                }
            })?;
        Ok(Timeline {
            seen,
            end: Some(end),
            thread: Some(thread),
        })
    }

    /// A stage begins, and the one before has ended.
    pub fn enter(&self, stage: &'static str) {
        lock(&self.seen).enter(Some(stage));
    }

    /// The samples, and the stages in the order of their first turns.
    pub fn finish(self) -> (Vec<Sample>, Vec<Memory>) {
        let mut seen = lock(&self.seen);
        seen.enter(None);
        (
            std::mem::take(&mut seen.samples),
            std::mem::take(&mut seen.stages),
        )
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Seen {
    fn enter(&mut self, stage: Option<&'static str>) {
        self.sample();
        let now = Instant::now();
        if let Some(last) = self.stage {
            self.stages[last].seconds += (now - self.entered).as_secs_f64();
        }
        self.entered = now;
        self.stage = stage.map(|name| {
            let known = self.stages.iter().position(|s| s.stage == name);
            known.unwrap_or_else(|| {
                self.stages.push(Memory {
                    stage: name,
                    seconds: 0.0,
                    most: 0,
                });
                self.stages.len() - 1
            })
        });
        self.sample();
    }

    fn sample(&mut self) {
        let Some(bytes) = memory_now() else {
            return;
        };
        if let Some(stage) = self.stage {
            let most = &mut self.stages[stage].most;
            *most = bytes.max(*most);
        }
        let seconds = self.begin.elapsed().as_secs_f64();
        self.samples.push(Sample { seconds, bytes });
        if self.samples.len() >= MOST {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.every *= 2;
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn stages_know_their_time_and_their_memory() {
        let timeline = Timeline::begin().unwrap();
        timeline.enter("much");
        let much = vec![1u8; 64 << 20];
        std::thread::sleep(2 * EVERY);
        timeline.enter("less");
        drop(std::hint::black_box(much));
        timeline.enter("much");
        let (samples, stages) = timeline.finish();
        assert!(samples.len() > 5);
        assert!(samples.is_sorted_by_key(|s| s.seconds));
        let names: Vec<&str> = stages.iter().map(|s| s.stage).collect();
        assert_eq!(names, ["much", "less"]);
        assert!(stages[0].seconds >= (2 * EVERY).as_secs_f64());
        assert!(stages[0].most >= 64 << 20);
    }

    #[test]
    fn long_runs_have_few_samples() {
        let timeline = Timeline::begin().unwrap();
        for _ in 0..2 * MOST {
            lock(&timeline.seen).sample();
        }
        let (samples, _) = timeline.finish();
        assert!(samples.len() < MOST);
    }
}
