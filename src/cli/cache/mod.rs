//! `dwindle cache`: packs what llama.cpp saved of a prompt.

mod bench;
mod calibrate;
mod eval;
mod info;
mod pack;
mod unpack;

use std::path::Path;

use clap::{Parser, Subcommand};

use super::Failure;
use crate::cache::CacheError;
use crate::kv::KvError;

/// Pack saved prompts: what a model keeps of a text, as llama.cpp saves it
///
/// Packs files that llama-server's slots, `llama_state_seq_save_file` and `--prompt-cache` write, to a tenth of their
/// bytes or less, and unpacks them for whatever llama.cpp is to read them.
#[derive(Debug, Parser)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Calibrate(calibrate::Args),
    Pack(pack::Args),
    Unpack(unpack::Args),
    Info(info::Args),
    Eval(eval::Args),
    Bench(bench::Args),
}

/// Runs `dwindle cache`.
pub fn main(args: &Args) -> Result<(), Failure> {
    match &args.command {
        Command::Calibrate(args) => calibrate::main(args),
        Command::Pack(args) => pack::main(args),
        Command::Unpack(args) => unpack::main(args),
        Command::Info(args) => info::main(args),
        Command::Eval(args) => eval::main(args),
        Command::Bench(args) => bench::main(args),
    }
}

/// What is wrong with a file of a state.
pub(super) fn blame(path: &Path, error: impl Into<CacheError>) -> Failure {
    match error.into() {
        CacheError::Io(e) | CacheError::Kv(KvError::Io(e)) => e.into(),
        CacheError::Kv(e) => Failure::file(path, e),
        e => e.into(),
    }
}
