//! `dwindle run`: generate text.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Parser;

use super::Failure;
use super::model::{Attention, Runtime};
use crate::llama::context::{Context, ContextOptions};
use crate::llama::generate::{Generated, Sampling, Stop, generate};

/// Generate text with a `.gguf`, a `.dwn` or a checkpoint
#[derive(Debug, Parser)]
pub struct Args {
    /// A `.gguf`, a `.dwn` or a checkpoint
    file: PathBuf,
    /// The text to continue; with --chat, the message to answer
    #[arg(short, long, allow_hyphen_values = true)]
    prompt: String,
    /// Maximum tokens to generate; -1 for as many as the context holds
    #[arg(short = 'n', long = "predict", default_value = "128", value_parser = count)]
    #[arg(allow_negative_numbers = true)]
    predict: usize,
    /// Temperature; 0 always takes the most probable token
    #[arg(long, default_value_t = 0.8)]
    temp: f32,
    /// Seed; the same seed gives the same text
    #[arg(short, long, default_value_t = 42)]
    seed: u32,
    /// Apply the model's chat template to the prompt
    #[arg(long)]
    chat: bool,
    /// Context size in tokens
    #[arg(short, long = "ctx", default_value_t = 4096)]
    ctx: u32,
    #[command(flatten)]
    attention: Attention,
    #[command(flatten)]
    runtime: Runtime,
}

/// llama.cpp's -1 is without end and its -2 until the context is full. The context is never shifted
/// here, so that both end where it does.
fn count(text: &str) -> Result<usize, String> {
    if ["-1", "-2"].contains(&text) {
        return Ok(usize::MAX);
    }
    let count: u64 = text
        .parse()
        .map_err(|_| format!("expected 0 to {}, or -1", u64::MAX))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}

pub fn main(args: &Args) -> Result<(), Failure> {
    if !(args.temp >= 0.0 && args.temp.is_finite()) {
        return Err(Failure::Usage(format!(
            "`--temp` is {}, expected 0 or more",
            args.temp
        )));
    }
    let model = args.runtime.load(&args.file)?;
    let text = if args.chat {
        model.chat_prompt(&[("user", &args.prompt)])?
    } else {
        args.prompt.clone()
    };
    let prompt = model.tokenize(&text, true, args.chat)?;
    let needed = (prompt.len() as u64).saturating_add(args.predict as u64);
    let mut context = Context::new(
        &model,
        &ContextOptions {
            ctx: u64::from(args.ctx).min(needed.max(64)) as u32,
            ..args.attention.apply(args.runtime.context_options())
        },
    )?;
    let sampling = Sampling {
        temperature: args.temp,
        seed: args.seed,
        ..Sampling::default()
    };
    let mut out = std::io::stdout().lock();
    if !args.chat {
        write!(out, "{}", args.prompt)?;
        out.flush()?;
    }
    let mut written = Ok(());
    let generated = generate(
        &mut context,
        &prompt,
        args.predict,
        &sampling,
        &mut |piece| {
            written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            match written {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        },
    )?;
    written?;
    writeln!(out)?;
    report(&generated);
    Ok(())
}

/// Says on stderr how fast it was.
fn report(generated: &Generated) {
    let rate = |tokens: usize, time: std::time::Duration| tokens as f64 / time.as_secs_f64();
    eprintln!(
        "{} prompt tokens at {:.1}/s, {} generated at {:.1}/s{}",
        generated.prompt_tokens,
        rate(generated.prompt_tokens, generated.prompt_time),
        generated.tokens.len(),
        rate(generated.tokens.len(), generated.generation_time),
        match generated.stop {
            Stop::ContextFull => ", the context is full",
            _ => "",
        }
    );
}
