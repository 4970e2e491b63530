//! Memory and threads of commands that write tensors.

use clap::Args;

use super::output::parse_bytes;
use crate::writing::Options;

/// Memory and threads.
#[derive(Debug, Clone, Args)]
pub struct Resources {
    /// Memory for tensors in progress. This does not limit the whole process: mapped files,
    /// factored Gram matrices, the layers that `--sequential` fits, running models, threads and
    /// llama.cpp's buffers come on top, and a tensor that needs more is processed alone
    #[arg(long, default_value = "1G", value_parser = parse_bytes, value_name = "BYTES")]
    pub memory: u64,
    /// Worker threads [default: one per core]
    #[arg(short, long)]
    pub threads: Option<usize>,
}

impl Resources {
    /// Options for writing; `compress` turns on lossless compression of payloads.
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
