//! `dwindle cache`: packs what llama.cpp saved of a prompt.

mod bench;
mod calibrate;
mod eval;
mod info;
mod pack;
mod unpack;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

use super::Failure;
use crate::cache::{CacheError, open_codebook};
use crate::kv::KvError;
use crate::kv::codebook::Codebook;
use crate::runtime::identity;

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

/// A codebook, held against the model that it is to be of.
pub(super) fn codebook_of(
    model: &Path,
    path: Option<&PathBuf>,
) -> Result<Option<Codebook>, Failure> {
    let Some(path) = path else {
        return Ok(None);
    };
    let codebook = open_codebook(path).map_err(|e| blame(path, e))?;
    if codebook.origin.model != identity(model)?.norms_sha256 {
        return Err(Failure::Input(format!(
            "`{}` is a codebook of another model than `{}`; make one with `dwindle cache calibrate`",
            path.display(),
            model.display()
        )));
    }
    Ok(Some(codebook))
}

/// What is wrong with a file of a state.
fn blame(path: &Path, error: impl Into<CacheError>) -> Failure {
    match error.into() {
        CacheError::Io(e) | CacheError::Kv(KvError::Io(e)) => e.into(),
        CacheError::Kv(e) => Failure::file(path, e),
        e => e.into(),
    }
}
