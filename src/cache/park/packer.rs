//! The thread that packs parked texts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::super::error::CacheError;
use super::super::files::{Aim, How, pack_bytes};
use super::folder::Folder;
use super::options::Warn;
use super::store::Shared;
use crate::kv::Encoder;
use crate::kv::codebook::Codebook;

/// A thread that packs texts, in their order, beside the one that evaluates.
#[derive(Debug)]
pub(super) struct Packer {
    waiting: Option<Sender<u64>>,
    thread: Option<JoinHandle<()>>,
    /// Whether what waits is no longer wanted.
    is_over: Arc<AtomicBool>,
}

impl Packer {
    pub fn start(
        shared: Arc<Shared>,
        folder: Option<Folder>,
        packing: Option<(Arc<Codebook>, Aim)>,
        warn: Warn,
    ) -> Result<Packer, CacheError> {
        // A codebook that can't be used is refused now, not by the thread.
        if let Some((codebook, _)) = &packing {
            Encoder::new(codebook)?;
        }
        // Generation goes on beside.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(cores.div_ceil(4));
        let mut work = Work {
            pool: pool.build().map_err(std::io::Error::other)?,
            shared,
            folder,
            warn,
        };
        let is_over = Arc::new(AtomicBool::new(false));
        let (waiting, ids) = channel();
        let over = Arc::clone(&is_over);
        let thread = std::thread::Builder::new()
            .name("packer".into())
            .spawn(move || work.all(&ids, packing.as_ref(), &over))?;
        Ok(Packer {
            waiting: Some(waiting),
            thread: Some(thread),
            is_over,
        })
    }

    /// Packs a text when there is time.
    pub fn pack(&self, id: u64) {
        if let Some(waiting) = &self.waiting {
            // Without the thread, texts stay as they are.
            let _ = waiting.send(id);
        }
    }
}

impl Drop for Packer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.waiting = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}

struct Work {
    pool: rayon::ThreadPool,
    shared: Arc<Shared>,
    folder: Option<Folder>,
    warn: Warn,
}

impl Work {
    /// Packs what comes, until no more can come.
    fn all(
        &mut self,
        ids: &Receiver<u64>,
        packing: Option<&(Arc<Codebook>, Aim)>,
        is_over: &AtomicBool,
    ) {
        let encoder =
            packing.and_then(|(codebook, aim)| Some((Encoder::new(codebook).ok()?, *aim)));
        let how = match &encoder {
            Some((encoder, aim)) => How::Transform(encoder, *aim),
            None => How::Lossless,
        };
        for id in ids {
            // Without a folder nothing outlives the server.
            if self.folder.is_none() && is_over.load(Ordering::Relaxed) {
                return;
            }
            self.one(id, how);
        }
    }

    fn one(&self, id: u64, how: How<'_>) {
        let Some((text, state)) = self.shared.store().unpacked(id) else {
            return;
        };
        let packed = match self.pool.install(|| pack_bytes(&state, how)) {
            Ok(packed) => packed,
            Err(error) => {
                (self.warn)(&format!("a parked text stays unpacked: {error}"));
                return;
            }
        };
        drop(state);
        let most = self.shared.store().limits().disk;
        let folder = self.folder.as_ref().filter(|_| {
            let fits = packed.len() as u64 <= most;
            if !fits {
                let len = packed.len();
                let words = format!("{len} bytes are more than all its texts may take ({most})");
                (self.warn)(&format!("a parked text is not in the folder: {words}"));
            }
            fits
        });
        let file = folder.and_then(|folder| {
            let written = folder.write(&text.tokens, &packed);
            let failed = |e| (self.warn)(&format!("a parked text is in memory only: {e}"));
            written.map_err(failed).ok()
        });
        let removed = self.shared.store().packed(id, text, packed, file);
        if let Some(folder) = &self.folder {
            folder.remove(&removed);
        }
    }
}
