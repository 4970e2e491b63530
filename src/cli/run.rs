//! `dwindle run`: generate text.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Parser;
use dwindle_formats::output::{Claims, Kind};

use super::Failure;
use super::cache::codebook_of;
use super::hints::Hint;
use super::model::{Attention, Runtime};
use super::output::{checkpoint_path, size};
use crate::cache::{Aim, CacheError, How, is_packed, load_session, save_session};
use crate::kv::Encoder;
use crate::llama::context::{Context, ContextOptions};
use crate::llama::generate::{Generated, Sampling, Stop, generate_behind};
use crate::llama::model::{Model, Token};

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
    /// Go on from what was kept of an earlier prompt, as far as this one begins alike: a file that llama.cpp or
    /// `--save-session` saved, packed or not
    #[arg(long, value_name = "FILE")]
    session: Option<PathBuf>,
    /// Save what is kept of the text at the end; packed, if the name ends in `.dwkv`
    #[arg(long, value_name = "FILE")]
    save_session: Option<PathBuf>,
    /// The codebook that packed sessions need; without one they are packed bit by bit
    #[arg(long, value_name = "FILE")]
    codebook: Option<PathBuf>,
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

/// What to continue: the prompt, or what the model's template makes of it.
fn tokenized(args: &Args, model: &Model) -> Result<Vec<Token>, Failure> {
    let text = match args.chat {
        true => model.chat_prompt(&[("user", &args.prompt)])?,
        false => args.prompt.clone(),
    };
    Ok(model.tokenize(&text, true, args.chat)?)
}

pub fn main(args: &Args) -> Result<(), Failure> {
    if !(args.temp >= 0.0 && args.temp.is_finite()) {
        return Err(Failure::Usage(format!(
            "`--temp` is {}, expected 0 or more",
            args.temp
        )));
    }
    claim(args)?;
    let codebook = codebook_of(&args.file, args.codebook.as_ref())?;
    // What is wrong with a codebook is known before a text is written.
    let encoder = codebook
        .as_ref()
        .map(Encoder::new)
        .transpose()
        .map_err(CacheError::from)?;
    let model = args.runtime.load(&args.file)?;
    let prompt = tokenized(args, &model)?;
    let mut context = Context::new(&model, &context_options(args, prompt.len()))?;
    let kept = match &args.session {
        Some(path) => load_session(&mut context, path, codebook.as_ref())
            .and_then(|session| session.restore(&mut context, 0, &prompt))
            .map_err(|e| {
                let hint = e.hint();
                Failure::file(path, e).hinted(hint)
            })?,
        None => 0,
    };
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
    let generated = generate_behind(
        &mut context,
        (&prompt, kept),
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
    report(&generated, kept);
    let text = [prompt, generated.tokens].concat();
    save(
        args,
        &mut context,
        &text[..generated.read],
        encoder.as_ref(),
    )
}

/// A context for so many tokens and those that are wanted. A session may be longer, so that all that was asked for is made
/// for it.
fn context_options(args: &Args, prompt: usize) -> ContextOptions {
    let needed = (prompt as u64).saturating_add(args.predict as u64);
    ContextOptions {
        ctx: match args.session {
            Some(_) => args.ctx,
            None => u64::from(args.ctx).min(needed.max(64)) as u32,
        },
        ..args.attention.apply(args.runtime.context_options())
    }
}

/// No session is written over a model.
fn claim(args: &Args) -> Result<(), Failure> {
    Claims::new()
        .reads("the model", [checkpoint_path(&args.file)])
        .reads("the codebook", &args.codebook)
        .reads("an adapter", args.runtime.adapters())
        .writes(&args.save_session)
        .check()?;
    let Some(path) = &args.save_session else {
        return Ok(());
    };
    let kind = match is_packed(path) {
        true => Kind::PackedState,
        false => Kind::State,
    };
    Ok(kind.check(path)?)
}

/// Saves what the context keeps of the text.
fn save(
    args: &Args,
    context: &mut Context<'_>,
    text: &[Token],
    encoder: Option<&Encoder<'_>>,
) -> Result<(), Failure> {
    let Some(path) = &args.save_session else {
        return Ok(());
    };
    let how = match encoder {
        Some(encoder) => How::Transform(encoder, Aim::Ratio(RATIO)),
        None => How::Lossless,
    };
    let bytes = save_session(context, text, path, how)?;
    eprintln!("{}: {}", path.display(), size(bytes));
    Ok(())
}

/// How much smaller sessions are packed by a codebook.
const RATIO: f64 = 12.0;

/// Says on stderr how fast it was.
fn report(generated: &Generated, kept: usize) {
    let rate = |tokens: usize, time: std::time::Duration| tokens as f64 / time.as_secs_f64();
    eprintln!(
        "{} prompt tokens{} at {:.1}/s, {} generated at {:.1}/s{}",
        generated.prompt_tokens - kept,
        match kept {
            0 => String::new(),
            kept => format!(" behind {kept} of the session"),
        },
        rate(generated.prompt_tokens - kept, generated.prompt_time),
        generated.tokens.len(),
        rate(generated.tokens.len(), generated.generation_time),
        match generated.stop {
            Stop::ContextFull => ", the context is full",
            _ => "",
        }
    );
}
