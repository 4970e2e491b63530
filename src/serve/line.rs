//! The queue of jobs for the engine, first come, first served.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use crate::llama::parallel::{Event, Job};

/// A job, and where its events go.
#[derive(Debug)]
pub struct Waiting {
    /// What is to be done.
    pub job: Job,
    /// Closed when nobody waits any more.
    pub events: UnboundedSender<Event>,
}

/// The queue. Jobs that nobody waits for take no place.
#[derive(Debug)]
pub struct Line {
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    is_closed: bool,
    is_over: bool,
}

impl Line {
    /// An empty queue for this many jobs.
    pub fn new(most: usize) -> Line {
        Line {
            most,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a job at the end; false where there is no place.
    pub fn join(&self, waiting: Waiting) -> bool {
        let mut state = self.state();
        if state.waiting.len() >= self.most {
            state.waiting.retain(|w| !w.events.is_closed());
        }
        if state.is_closed || state.waiting.len() >= self.most {
            return false;
        }
        state.waiting.push_back(waiting);
        self.changed.notify_all();
        true
    }

    /// The next job that somebody waits for, if there is one.
    pub fn next(&self) -> Option<Waiting> {
        self.state().next()
    }

    /// Waits for the next job; `None` where the line is closed.
    pub fn wait(&self) -> Option<Waiting> {
        let mut state = self.state();
        while !state.is_closed {
            if let Some(next) = state.next() {
                return Some(next);
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Whether the work is to end.
    pub fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// Sends everybody away and ends the work.
    pub fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        state.waiting.clear();
        self.changed.notify_all();
    }

    /// Says that the work has ended.
    pub fn set_over(&self) {
        self.state().is_over = true;
        self.changed.notify_all();
    }

    /// Waits for the work to end, and says whether it has.
    pub fn wait_over(&self, within: Duration) -> bool {
        let state = self.state();
        let waited = self
            .changed
            .wait_timeout_while(state, within, |state| !state.is_over);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_over
    }
}

impl State {
    fn next(&mut self) -> Option<Waiting> {
        loop {
            let next = self.waiting.pop_front()?;
            if !next.events.is_closed() {
                return Some(next);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::llama::generate::Sampling;

    fn job(token: i32) -> (Waiting, UnboundedReceiver<Event>) {
        let (events, receiver) = unbounded_channel();
        let job = Job {
            prompt: vec![token],
            limit: 1,
            sampling: Sampling::default(),
            stops: Vec::new(),
        };
        (Waiting { job, events }, receiver)
    }

    #[test]
    fn those_who_have_gone_leave_their_places() {
        let line = Line::new(2);
        let (jobs, mut clients): (Vec<_>, Vec<_>) = (0..4).map(job).unzip();
        let mut jobs = jobs.into_iter();
        let mut join = || line.join(jobs.next().unwrap());
        assert!(join() && join());
        assert!(!join());
        clients.remove(0);
        assert!(join());
        // The first one that is still wanted.
        assert_eq!(line.next().unwrap().job.prompt, [1]);
        clients.clear();
        assert!(line.next().is_none());
    }

    #[test]
    fn a_closed_line_has_nobody() {
        let line = Line::new(2);
        let (first, mut client) = job(1);
        assert!(line.join(first));
        line.close();
        assert!(line.wait().is_none() && line.next().is_none());
        assert!(client.try_recv().is_err() && client.is_closed());
        assert!(!line.join(job(2).0));
        assert!(!line.wait_over(Duration::ZERO));
        line.set_over();
        assert!(line.wait_over(Duration::ZERO));
    }
}
