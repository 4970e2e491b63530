//! `dwindle serve`: an OpenAI-compatible server, bound to localhost.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use super::model::{Attention, Runtime};
use super::parking::Parking;
use crate::llama::context::ContextOptions;
use crate::llama::exit::exit_now;
use crate::serve::{Engine, EngineOptions, GRACE, listen, serve};

/// Time for a running evaluation when the server ends; its answer is no longer sent.
const LAST_EVALUATION: Duration = Duration::from_secs(2);

/// Serve a `.gguf`, a `.dwn` or a checkpoint over an OpenAI-compatible HTTP API
///
/// Listens on 127.0.0.1 only: /v1/models, /v1/completions, /v1/chat/completions (also streaming)
/// and /health. Answers several requests at once. A model that embeds texts has /v1/embeddings in
/// place of completions.
#[derive(Debug, Parser)]
pub struct Args {
    /// A `.gguf`, a `.dwn` or a checkpoint
    file: PathBuf,
    /// Port; 0 picks a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Requests to answer at the same time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=256))]
    parallel: u32,
    /// Context size of each request, in tokens
    #[arg(short, long = "ctx", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(2..))]
    ctx: u32,
    /// The model's name for clients [default: the file's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    parking: Parking,
    #[command(flatten)]
    attention: Attention,
    #[command(flatten)]
    runtime: Runtime,
}

pub fn main(args: &Args) -> Result<(), Failure> {
    let codebook = args.parking.codebook(&args.file)?;
    let model = args.runtime.load(&args.file)?;
    let adapters = args.runtime.adapters();
    let memory = args
        .parking
        .memory((&args.file, &model), adapters, codebook)?;
    let file = args.file.file_name().unwrap_or(args.file.as_os_str());
    let name = args.name.clone();
    let engine = Engine::start(
        model,
        EngineOptions {
            context: ContextOptions {
                ctx: args.ctx,
                sequences: args.parallel,
                ..args.attention.apply(args.runtime.context_options())
            },
            name: name.unwrap_or_else(|| file.to_string_lossy().into_owned()),
        },
        memory,
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(until_interrupted(args.port, engine.clone()))?;
    if !engine.stop(LAST_EVALUATION) {
        exit_now(0);
    }
    Ok(())
}

async fn until_interrupted(port: u16, engine: Engine) -> Result<(), Failure> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = listen(address).map_err(|e| {
        Failure::Input(format!(
            "can't listen on {address}: {e}; choose another `--port`"
        ))
    })?;
    let address = listener.local_addr()?;
    // Before the address is printed, so that an early interrupt is seen.
    let mut interrupts = signal(SignalKind::interrupt())?;
    eprintln!("{} on http://{address}/v1, stop with Ctrl-C", engine.name());
    let end = async move {
        interrupts.recv().await;
        tokio::spawn(async move {
            interrupts.recv().await;
            exit_now(130);
        });
        eprintln!(
            "stopping when open answers are complete, within {} s; Ctrl-C again stops at once",
            GRACE.as_secs()
        );
    };
    Ok(serve(listener, engine, end).await?)
}
