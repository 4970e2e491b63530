//! Parses arguments and prints tables or JSON; the only code that prints.

mod adapter;
mod bench;
mod cache;
mod calibrate;
mod chart;
mod completions;
mod compress;
mod devices;
mod diagnose;
mod embed;
mod eval;
mod export;
mod failure;
mod families;
mod hints;
mod inspect;
mod interrupt;
mod join;
mod man;
mod model;
mod notes;
mod output;
mod parking;
mod progress;
mod reference;
mod report;
mod resources;
mod rpc_server;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod spelling;
mod submit;
mod sweep;
mod target;
mod verify;
mod workspace;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use failure::Failure;

/// Converts Hugging Face checkpoints (or GGUF files) into smaller files that run under llama.cpp,
/// and measures the loss.
///
/// Exit codes: 0 success, 1 a check ran and failed, 2 wrong usage, 3 bad input.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(alias = "quantize", alias = "convert")]
    Compress(compress::Args),
    Calibrate(calibrate::Args),
    Diagnose(diagnose::Args),
    Sweep(sweep::Args),
    Workspace(workspace::Args),
    Join(join::Args),
    Submit(submit::Args),
    Verify(verify::Args),
    Inspect(inspect::Args),
    Families(families::Args),
    Adapter(adapter::Args),
    Export(export::Args),
    Run(run::Args),
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    Embed(embed::Args),
    Eval(eval::Args),
    Bench(bench::Args),
    Cache(cache::Args),
    RpcServer(rpc_server::Args),
    Completions(completions::Args),
    Man(man::Args),
    /// Print the command-line reference as Markdown
    #[command(hide = true)]
    Reference,
}

/// Runs the command that the process was called with.
pub fn main() -> ExitCode {
    crate::llama::backend::init();
    let args = spelling::with_long_names(std::env::args_os(), &Cli::command());
    // A failure that can't be caught ends the process as bad input does.
    crate::llama::guard::end_quietly(3);
    let command = Cli::parse_from(args).command;
    match &command {
        Command::Compress(_) | Command::Sweep(_) => interrupt::tidy(
            "interrupted: no output was written; the same command goes on from here",
        ),
        Command::Calibrate(_) | Command::Diagnose(_) | Command::Export(_) | Command::Eval(_) => {
            interrupt::tidy("interrupted: no output was written");
        }
        _ => {}
    }
    let result = match command {
        Command::Compress(args) => compress::main(&args),
        Command::Calibrate(args) => calibrate::main(&args),
        Command::Diagnose(args) => diagnose::main(&args),
        Command::Sweep(args) => sweep::main(&args),
        Command::Workspace(args) => workspace::main(&args),
        Command::Join(args) => join::main(&args),
        Command::Submit(args) => submit::main(&args),
        Command::Verify(args) => verify::main(&args),
        Command::Inspect(args) => inspect::main(&args),
        Command::Families(args) => families::main(&args),
        Command::Adapter(args) => adapter::main(&args),
        Command::Export(args) => export::main(&args),
        Command::Run(args) => run::main(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::main(&args),
        Command::Embed(args) => embed::main(&args),
        Command::Eval(args) => eval::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Cache(args) => cache::main(&args),
        Command::RpcServer(args) => rpc_server::main(&args),
        Command::Completions(args) => completions::main(&args, Cli::command()),
        Command::Man(args) => man::main(&args, Cli::command()),
        Command::Reference => reference::main(Cli::command()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
