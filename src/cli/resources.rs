//! What a command that writes tensors may use of the machine.

use clap::Args;

use super::output::parse_bytes;
use crate::writing::Options;

/// Memory and threads.
#[derive(Debug, Clone, Args)]
pub struct Resources {
    /// Memory for values and results of tensors under way. No limit on the process: a tensor that needs
    /// more passes alone, and mapped files, factored Gram matrices, the layers that `--sequential` fits,
    /// running models and what threads and llama.cpp take besides come on top
    #[arg(long, default_value = "1G", value_parser = parse_bytes, value_name = "BYTES")]
    pub memory: u64,
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
