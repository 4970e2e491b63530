//! What a command that writes tensors may use of the machine.

use crate::writing::Options;
use clap::Args;

use super::output::parse_bytes;

/// Memory and threads.
#[derive(Debug, Clone, Args)]
pub struct Resources {
    /// Memory for tensors under way; one tensor above it still passes, alone
    #[arg(long, default_value = "1G", value_parser = parse_bytes, value_name = "BYTES")]
    memory: u64,
    /// Worker threads [default: one per core]
    #[arg(short, long)]
    pub threads: Option<usize>,
}

impl Resources {
    /// As the pipeline wants it; `compress` makes payloads losslessly smaller.
    pub fn options(&self, compress: bool) -> Options {
        Options {
            threads: self.threads.unwrap_or_else(available_threads),
            memory: self.memory,
            compress,
        }
    }
}

/// One per core.
fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}
