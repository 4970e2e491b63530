//! Writes data back to disk while a file grows, so that the final sync does not wait for all of it.

use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::{JoinHandle, spawn};

use fs_err as fs;

/// Bytes after which written data is sent to the disk.
const EVERY: u64 = 32 << 20;

/// A thread that syncs a file's data whenever enough of it has been written.
#[derive(Debug)]
pub(super) struct Flusher {
    requests: Sender<()>,
    thread: JoinHandle<io::Result<()>>,
    written: u64,
}

impl Flusher {
    pub fn of(file: &fs::File) -> io::Result<Flusher> {
        let file = file.try_clone()?;
        let (requests, waiting) = channel();
        let thread = spawn(move || {
            while waiting.recv().is_ok() {
                // Requests that came while the disk was busy are one.
                while waiting.try_recv().is_ok() {}
                file.sync_data()?;
            }
            Ok(())
        });
        Ok(Flusher {
            requests,
            thread,
            written: 0,
        })
    }

    /// Notes that this many more bytes have been written.
    pub fn wrote(&mut self, bytes: u64) {
        self.written += bytes;
        if self.written >= EVERY {
            self.written = 0;
            // A thread that has ended holds an error, which `finish` returns.
            let _ = self.requests.send(());
        }
    }

    /// Ends the thread. The system reports a failed write-back once: here, if it was during one
    /// of the syncs.
    pub fn finish(self) -> io::Result<()> {
        drop(self.requests);
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the thread that syncs the file died")),
        }
    }
}
