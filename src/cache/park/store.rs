//! Which texts are parked, where, and which go first.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::session::common;
use super::options::LEAST;
use crate::llama::model::Token;

/// Restoring a text takes at most about this part of the time to read it, so that a shorter beginning of it is sooner read.
const WORTH: usize = 8;

/// The most bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub memory: u64,
    pub disk: u64,
}

/// A text, as its file describes it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Described {
    pub tokens: Vec<Token>,
    /// Whether its beginning can be restored, too.
    pub is_whole: bool,
}

/// A file, and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub path: PathBuf,
    pub len: u64,
}

#[derive(Debug)]
struct Parked {
    id: u64,
    text: Described,
    memory: Option<Held>,
    file: Option<File>,
    used: u64,
}

#[derive(Debug, Clone)]
struct Held {
    bytes: Arc<Vec<u8>>,
    is_packed: bool,
}

/// A text that a prompt begins like, and where it is: in memory, in a file, or both.
#[derive(Debug)]
pub(super) struct Found {
    pub id: u64,
    pub memory: Option<Arc<Vec<u8>>>,
    pub file: Option<PathBuf>,
}

/// Whether restoring `all` tokens is worth while for so many of them.
fn is_worth(same: usize, all: usize) -> bool {
    same >= LEAST && same.saturating_mul(WORTH) >= all
}

/// All parked texts.
#[derive(Debug)]
pub(super) struct Store {
    limits: Limits,
    texts: Vec<Parked>,
    uses: u64,
}

/// The store, as threads share it.
#[derive(Debug)]
pub(super) struct Shared(Mutex<Store>);

impl Shared {
    pub fn new(limits: Limits) -> Shared {
        Shared(Mutex::new(Store {
            limits,
            texts: Vec::new(),
            uses: 0,
        }))
    }

    /// Locks it. Whoever does must not take long: the server waits.
    pub fn store(&self) -> MutexGuard<'_, Store> {
        // Each change is complete before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Adds a text of the folder, used later than all before.
    pub fn add_file(&mut self, text: Described, file: File) {
        let id = self.now();
        self.texts.push(Parked {
            id,
            text,
            memory: None,
            file: Some(file),
            used: id,
        });
    }

    /// Adds a text that is not packed yet. Gives its number.
    pub fn add(&mut self, text: &[Token], state: Vec<u8>, is_whole: bool) -> u64 {
        let id = self.now();
        self.texts.push(Parked {
            id,
            text: Described {
                tokens: text.to_vec(),
                is_whole,
            },
            memory: Some(Held {
                bytes: Arc::new(state),
                is_packed: false,
            }),
            file: None,
            used: id,
        });
        id
    }

    /// A text that is still to be packed, and its state.
    pub fn unpacked(&self, id: u64) -> Option<(Described, Arc<Vec<u8>>)> {
        let parked = self.texts.iter().find(|p| p.id == id)?;
        let held = parked.memory.as_ref().filter(|held| !held.is_packed)?;
        Some((parked.text.clone(), Arc::clone(&held.bytes)))
    }

    /// Puts a packed text in the place of what it was, or back where that had to go meanwhile. Gives files that are no longer
    /// needed: of texts that are beginnings of it, or beyond the limits.
    pub fn packed(
        &mut self,
        id: u64,
        text: Described,
        bytes: Vec<u8>,
        file: Option<File>,
    ) -> Vec<PathBuf> {
        let before = self.texts.iter().position(|p| p.id == id);
        let mut used = before.map_or(id, |at| self.texts.swap_remove(at).used);
        let mut removed = Vec::new();
        self.texts.retain_mut(|p| {
            let path = |f: &File| f.path.clone();
            let is_replaced = p.file.as_ref().map(path) == file.as_ref().map(path);
            if is_replaced && file.is_some() {
                return false;
            }
            let len = p.text.tokens.len();
            let serves = text.is_whole && is_worth(len, text.tokens.len());
            if len == 0 || !serves || !text.tokens.starts_with(&p.text.tokens) {
                return true;
            }
            used = used.max(p.used);
            // What is on disk stays there as long as nothing else is.
            p.memory = None;
            if file.is_some() || p.file.is_none() {
                removed.extend(p.file.as_ref().map(path));
                return false;
            }
            true
        });
        self.texts.push(Parked {
            id,
            text,
            memory: Some(Held {
                bytes: Arc::new(bytes),
                is_packed: true,
            }),
            file,
            used,
        });
        removed.extend(self.trim());
        let kept: Vec<&PathBuf> = self.files().map(|f| &f.path).collect();
        removed.retain(|path| !kept.contains(&path));
        removed
    }

    /// Whether what is parked serves for a text as well as the text itself would, in a context with this room.
    pub fn serves(&mut self, text: &[Token], room: usize) -> bool {
        let serves = |p: &Parked| {
            let len = p.text.tokens.len();
            let is_found = len == text.len() || (p.text.is_whole && is_worth(text.len(), len));
            is_found && len <= room && p.text.tokens.starts_with(text)
        };
        let found = self.texts.iter().position(serves);
        let now = self.now();
        if let Some(found) = found {
            self.texts[found].used = now;
        }
        found.is_some()
    }

    /// The text with which a prompt has the longest beginning in common, if that is worth to restore and fits.
    pub fn find(&mut self, prompt: &[Token], room: usize) -> Option<Found> {
        let most = prompt.len().saturating_sub(1);
        let fitting = self.texts.iter().enumerate();
        let fitting = fitting.filter_map(|(i, p)| {
            let len = p.text.tokens.len();
            let same = common(&p.text.tokens, prompt).min(most);
            let is_there = p.text.is_whole || same == len;
            let is_found = is_worth(same, len) && is_there && len <= room;
            is_found.then_some((i, same, len))
        });
        let (best, ..) = fitting.max_by_key(|(_, same, len)| (*same, usize::MAX - len))?;
        let now = self.now();
        let parked = &mut self.texts[best];
        parked.used = now;
        Some(Found {
            id: parked.id,
            memory: parked.memory.as_ref().map(|held| Arc::clone(&held.bytes)),
            file: parked.file.as_ref().map(|file| file.path.clone()),
        })
    }

    /// Forgets a text whose file is gone.
    pub fn lose(&mut self, id: u64) {
        self.texts.retain(|p| p.id != id);
    }

    /// Forgets what a text is, which can't be restored. Its file goes when it has not been used for the longest time.
    pub fn forget(&mut self, id: u64) {
        if let Some(parked) = self.texts.iter_mut().find(|p| p.id == id) {
            parked.text.tokens.clear();
            parked.memory = None;
        }
        self.texts
            .retain(|p| p.memory.is_some() || p.file.is_some());
    }

    /// Lets go what was not used for the longest time, until all is within the limits. Gives files to remove.
    pub fn trim(&mut self) -> Vec<PathBuf> {
        let held = |p: &Parked| p.memory.as_ref().map_or(0, |h| h.bytes.len() as u64);
        let mut memory: u64 = self.texts.iter().map(held).sum();
        let mut disk: u64 = self.files().map(|f| f.len).sum();
        let mut order: Vec<usize> = (0..self.texts.len()).collect();
        // What is in a file, too, is not lost.
        order.sort_by_key(|i| (self.texts[*i].file.is_none(), self.texts[*i].used));
        for i in &order {
            if memory > self.limits.memory {
                memory -= held(&self.texts[*i]);
                self.texts[*i].memory = None;
            }
        }
        order.sort_by_key(|i| self.texts[*i].used);
        let mut removed = Vec::new();
        for i in order {
            if disk > self.limits.disk
                && let Some(file) = self.texts[i].file.take()
            {
                disk -= file.len;
                removed.push(file.path);
            }
        }
        self.texts
            .retain(|p| p.memory.is_some() || p.file.is_some());
        removed
    }

    fn files(&self) -> impl Iterator<Item = &File> {
        self.texts.iter().filter_map(|p| p.file.as_ref())
    }

    fn now(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(first: i32, len: i32) -> Vec<Token> {
        (first..first + len).collect()
    }

    fn store(memory: u64, disk: u64) -> Shared {
        Shared::new(Limits { memory, disk })
    }

    fn file(name: &str, len: u64) -> File {
        let path = PathBuf::from(name);
        File { path, len }
    }

    #[test]
    fn the_longest_common_beginning_is_found() {
        let shared = store(1000, 0);
        let mut store = shared.store();
        let short = store.add(&text(0, 40), vec![1; 10], true);
        let long = store.add(&text(0, 80), vec![2; 10], true);
        let other = store.add(&text(500, 400), vec![3; 10], true);
        let mut found = |prompt: &[Token]| store.find(prompt, 1000).map(|f| f.id);
        assert_eq!(found(&text(0, 100)), Some(long));
        // All of it is never needed: the last token is read.
        assert_eq!(found(&text(0, 80)), Some(long));
        // As much as the longer one has, and less to restore.
        assert_eq!(found(&[text(0, 40), text(900, 9)].concat()), Some(short));
        assert_eq!(found(&text(0, 20)), None);
        // Too little of much.
        assert_eq!(found(&text(500, 45)), None);
        assert_eq!(found(&text(500, 60)), Some(other));
        assert!(store.find(&text(0, 100), 50).is_some_and(|f| f.id == short));
    }

    #[test]
    fn what_cant_be_cut_serves_whole_only() {
        let shared = store(1000, 0);
        let mut store = shared.store();
        let id = store.add(&text(0, 80), vec![2; 10], false);
        assert!(store.find(&text(0, 60), 1000).is_none());
        assert!(store.find(&text(0, 80), 1000).is_none());
        assert_eq!(store.find(&text(0, 81), 1000).map(|f| f.id), Some(id));
        let mut serves = |len, room| store.serves(&text(0, len), room);
        assert!(serves(80, 1000) && !serves(79, 1000) && !serves(80, 79));
    }

    #[test]
    fn those_that_were_not_used_go_first() {
        let shared = store(35, 0);
        let mut store = shared.store();
        for first in [0, 1000, 2000] {
            store.add(&text(first, 50), vec![0; 10], true);
        }
        assert!(store.find(&text(0, 60), 1000).is_some());
        store.add(&text(3000, 50), vec![0; 10], true);
        assert!(store.trim().is_empty());
        assert!(store.find(&text(1000, 60), 1000).is_none());
        for first in [0, 2000, 3000] {
            assert!(store.find(&text(first, 60), 1000).is_some(), "{first}");
        }
    }

    #[test]
    fn packed_texts_take_the_place_of_their_beginnings() {
        let shared = store(1000, 25);
        let mut store = shared.store();
        let pack = |store: &mut Store, text: &[Token], name: &str, len: u64| {
            let id = store.add(text, vec![0; 100], true);
            let (described, state) = store.unpacked(id).unwrap();
            assert_eq!((&described.tokens[..], state.len()), (text, 100));
            // Without a name, writing has failed.
            let file = (!name.is_empty()).then(|| file(name, len));
            let removed = store.packed(id, described, vec![1; 10], file);
            assert!(store.unpacked(id).is_none());
            removed
        };
        assert!(pack(&mut store, &text(0, 50), "a", 10).is_empty());
        let removed = pack(&mut store, &text(0, 60), "b", 10);
        assert_eq!(removed, [PathBuf::from("a")]);
        // A text that could not be written leaves what was.
        assert!(pack(&mut store, &text(0, 70), "", 0).is_empty());
        // One of much more tokens does not serve for it.
        assert!(pack(&mut store, &text(0, 600), "", 0).is_empty());
        assert!(!store.serves(&text(0, 71), 1000) && store.serves(&text(0, 80), 1000));
        // Files have their own limit, and stay when memory is short.
        let removed = pack(&mut store, &text(900, 60), "c", 20);
        assert_eq!(removed, [PathBuf::from("b")]);
        store.add(&text(2000, 60), vec![0; 985], true);
        store.trim();
        let found = store.find(&text(900, 70), 1000).unwrap();
        assert_eq!((found.memory, found.file), (None, Some("c".into())));
    }
}
