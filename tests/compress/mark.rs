//! Marks that a running process reaches, at which a test does something to it.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

/// After so long a process that neither ends nor reaches its mark has failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// Attempts to see a process between a mark and its end.
pub const ATTEMPTS: usize = 20;

/// Waits until a process reaches its mark, or ends. Returns whether it reached the mark.
#[track_caller]
pub fn reached(child: &mut Child, mark: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !mark() {
        if child.try_wait().unwrap().is_some() {
            return mark();
        }
        if start.elapsed() > PATIENCE {
            let _ = child.kill();
            panic!("it neither ends nor reaches its mark");
        }
        std::thread::yield_now();
    }
    true
}

/// How many tensors the journal beside an output names.
pub fn journaled(output: &Path) -> usize {
    let name = output.file_name().unwrap().to_string_lossy();
    let journal = output.with_file_name(format!(".{name}.journal"));
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    // The first line is the fingerprint.
    text.matches('\n').count().saturating_sub(1)
}
