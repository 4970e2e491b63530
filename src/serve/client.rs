//! Tracks whether a connection waits for the server or for its client. Only the latter may be cut
//! off.

use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The next request has not begun.
    Idle,
    /// The head of a request has begun, or should have.
    Header,
    /// The body of a request comes.
    Body,
    /// The server answers.
    Answer,
}

impl Phase {
    /// How long the server waits for the client here. In an answer that is for the client to read.
    fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Phase::Header => 10,
            Phase::Idle | Phase::Answer => 60,
            // The request's own limit is lower, and comes with an answer.
            Phase::Body => 60,
        })
    }
}

/// The client of a connection.
#[derive(Debug)]
pub struct Client {
    state: Mutex<State>,
    cut: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    since: Instant,
    /// Since when the client takes no bytes.
    unread: Option<Instant>,
    is_cut: bool,
}

impl Client {
    /// A client that has just connected.
    pub fn new(now: Instant) -> Client {
        Client {
            state: Mutex::new(State {
                phase: Phase::Header,
                since: now,
                unread: None,
                is_cut: false,
            }),
            cut: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment after the other, none of which panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says where the connection is now.
    pub fn enter(&self, phase: Phase) {
        self.enter_at(phase, Instant::now());
    }

    fn enter_at(&self, phase: Phase, now: Instant) {
        let mut state = self.state();
        (state.phase, state.since) = (phase, now);
    }

    /// Bytes have come: between requests they begin one. A request that has begun gets no more
    /// time for them.
    pub fn sent(&self) {
        let mut state = self.state();
        if state.phase == Phase::Idle {
            (state.phase, state.since) = (Phase::Header, Instant::now());
        }
    }

    /// Bytes were to be written, and the client has taken some, or none.
    pub fn took(&self, some: bool) {
        let mut state = self.state();
        state.unread = match (some, state.unread) {
            (true, _) => None,
            (false, since) => since.or_else(|| Some(Instant::now())),
        };
    }

    /// Since when the server waits for the client, and where; `None` while the client waits.
    fn waited_for(&self) -> Option<(Instant, Phase)> {
        let state = self.state();
        let since = match state.phase {
            _ if state.is_cut => None,
            Phase::Answer => state.unread,
            _ => Some(state.since),
        };
        since.map(|since| (since, state.phase))
    }

    fn cut(&self) {
        self.state().is_cut = true;
        self.cut.notify_one();
    }

    /// Comes when the connection is to be closed.
    pub async fn is_cut(&self) {
        self.cut.notified().await;
    }
}

/// A client has this time to be read from before it may have to give way: what it has sent lies in
/// the kernel until its connection has a turn.
const YOUNG: Duration = Duration::from_millis(100);

/// The state of the client that has been waited for the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oldest {
    /// Its connection will be closed.
    Cut,
    /// It may be cut off after this time.
    Young(Duration),
    /// There is none: all clients wait for the server.
    Nobody,
}

/// Every open connection.
#[derive(Debug, Default)]
pub struct Clients {
    open: Vec<Weak<Client>>,
}

impl Clients {
    /// Takes a connection in; it is open as long as its client is held elsewhere.
    pub fn add(&mut self, client: Weak<Client>) {
        if self.open.len() == self.open.capacity() {
            self.open.retain(|client| client.strong_count() > 0);
        }
        self.open.push(client);
    }

    /// Cuts off the connection whose client has been waited for the longest.
    pub fn cut_oldest(&mut self, now: Instant) -> Oldest {
        let open = self.open.iter().filter_map(Weak::upgrade);
        let waited = open.filter_map(|client| Some((client.waited_for()?.0, client)));
        let Some((since, client)) = waited.min_by_key(|(since, _)| *since) else {
            return Oldest::Nobody;
        };
        match YOUNG.checked_sub(now.saturating_duration_since(since)) {
            Some(left) if !left.is_zero() => Oldest::Young(left),
            _ => {
                client.cut();
                Oldest::Cut
            }
        }
    }

    /// Cuts off every connection whose client has been waited for too long.
    pub fn cut_overdue(&mut self, now: Instant) {
        self.cut_where(|since, phase| now.saturating_duration_since(since) > phase.patience());
    }

    /// Cuts off every connection that has no answer in progress, and those whose client has left
    /// its answer for this long.
    pub fn cut_unanswered(&mut self, now: Instant, unread: Duration) {
        self.cut_where(|since, phase| {
            phase != Phase::Answer || now.saturating_duration_since(since) > unread
        });
    }

    fn cut_where(&mut self, is_cut: impl Fn(Instant, Phase) -> bool) {
        self.open.retain(|client| {
            let Some(client) = client.upgrade() else {
                return false;
            };
            match client.waited_for() {
                Some((since, phase)) if is_cut(since, phase) => client.cut(),
                _ => {}
            }
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn some(count: usize, now: Instant) -> (Clients, Vec<Arc<Client>>) {
        let each: Vec<_> = (0..count).map(|_| Arc::new(Client::new(now))).collect();
        let mut clients = Clients::default();
        for client in &each {
            clients.add(Arc::downgrade(client));
        }
        (clients, each)
    }

    fn cut(each: &[Arc<Client>]) -> Vec<bool> {
        each.iter().map(|c| c.state().is_cut).collect()
    }

    #[test]
    fn the_oldest_that_is_waited_for_goes_first() {
        let now = Instant::now();
        let later = |seconds| now + Duration::from_secs(seconds);
        let (mut clients, mut each) = some(5, now);
        each[0].enter_at(Phase::Answer, now);
        each[1].enter_at(Phase::Body, later(3));
        each[2].enter_at(Phase::Idle, later(1));
        each[3].enter_at(Phase::Header, later(2));
        each.truncate(4); // the last one is gone
        for (number, expected) in [2, 3, 1].into_iter().enumerate() {
            assert_eq!(clients.cut_oldest(later(4)), Oldest::Cut);
            assert!(cut(&each)[expected], "{number}");
        }
        assert_eq!(clients.cut_oldest(later(4)), Oldest::Nobody);
        each[0].took(false);
        assert_eq!(clients.cut_oldest(later(3600)), Oldest::Cut);
        assert_eq!(cut(&each), [true; 4]);
    }

    #[test]
    fn who_has_just_come_is_not_cut_off() {
        let now = Instant::now();
        let (mut clients, each) = some(2, now);
        assert_eq!(clients.cut_oldest(now), Oldest::Young(YOUNG));
        assert_eq!(cut(&each), [false; 2]);
        assert_eq!(clients.cut_oldest(now + YOUNG), Oldest::Cut);
    }

    #[test]
    fn patience_ends_and_bytes_do_not_buy_more() {
        let now = Instant::now();
        let (mut clients, each) = some(4, now);
        each[1].enter_at(Phase::Answer, now);
        each[2].enter_at(Phase::Idle, now);
        each[3].enter_at(Phase::Body, now);
        each[0].sent();
        clients.cut_overdue(now + Phase::Header.patience());
        assert_eq!(cut(&each), [false; 4]);
        clients.cut_overdue(now + Phase::Header.patience() + Duration::from_millis(1));
        assert_eq!(cut(&each), [true, false, false, false]);
        clients.cut_overdue(now + Duration::from_secs(3600));
        assert_eq!(cut(&each), [true, false, true, true]);
    }

    #[test]
    fn at_the_end_only_answers_that_are_read_go_on() {
        let now = Instant::now();
        let (mut clients, each) = some(3, now);
        each[1].enter(Phase::Answer);
        each[2].enter(Phase::Answer);
        each[2].took(false);
        clients.cut_unanswered(now, Duration::from_secs(60));
        assert_eq!(cut(&each), [true, false, false]);
        each[1].took(true);
        clients.cut_unanswered(now + Duration::from_secs(3600), Duration::from_secs(60));
        assert_eq!(cut(&each), [true, false, true]);
    }
}
