//! Memory and threads of commands that write tensors.

use clap::Args;

use super::output::parse_bytes;
use crate::writing::Options;

/// Memory and threads.
#[derive(Debug, Clone, Args)]
pub struct Resources {
    /// Memory to work in. Models that run to be measured, and mapped files, come on top
    /// [default: half of the machine's]
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    pub memory: Option<u64>,
    /// Worker threads [default: one per core]
    #[arg(short, long)]
    pub threads: Option<usize>,
}

impl Resources {
    /// Options for writing; `compress` turns on lossless compression of payloads.
    pub fn options(&self, compress: bool) -> Options {
        let own = Options::default();
        Options {
            threads: self.threads.unwrap_or(own.threads),
            memory: self.memory.unwrap_or(own.memory),
            compress,
        }
    }
}
