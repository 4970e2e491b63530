//! Measures what packing a state costs: bytes, time, and how far what the model then says is from what it said.

use std::time::Instant;

use super::error::CacheError;
use super::files::{How, unpack_bytes};
use super::trial::{Continuations, Window, mean};
use crate::kv::{Target, pack};
use crate::llama::context::{Context, ContextOptions};
use crate::llama::model::{Model, Token};

/// A way to pack, and its name.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// What the table calls it.
    pub name: &'a str,
    /// The way.
    pub how: How<'a>,
}

/// On what packing is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalCacheOptions {
    /// Tokens that are read and packed.
    pub read: usize,
    /// Tokens whose predictions are compared.
    pub scored: usize,
    /// Windows of the text.
    pub windows: usize,
    /// Cells of a record.
    pub chunk: usize,
    /// How the model is run.
    pub context: ContextOptions,
}

/// What was measured of one way, over all windows.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Measured {
    /// The way's name.
    pub name: String,
    /// Bytes of keys and values in F16 for each byte of the packed files.
    pub ratio: f64,
    /// Bytes of a packed file, on average.
    pub bytes: f64,
    /// Mean divergence, in nats.
    pub kld: f64,
    /// Its standard error over windows.
    pub error: f64,
    /// The largest divergence.
    pub worst: f64,
    /// Seconds to read the prompt of a window, to pack what is kept of it, to unpack, and to restore.
    pub seconds: [f64; 4],
}

/// Packs and unpacks what the model keeps of windows of a text, and lets it go on from there.
///
/// # Errors
/// A text that is too short, or llama.cpp's words.
pub fn evaluate(
    model: &Model,
    text: &str,
    candidates: &[Candidate<'_>],
    options: &EvalCacheOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Measured>, CacheError> {
    let windows = windows(model, text, options)?;
    let total = options.read + options.scored;
    let mut context = Context::new(
        model,
        &ContextOptions {
            ctx: total as u32,
            outputs: options.context.batch,
            ..options.context.clone()
        },
    )?;
    let mut sums: Vec<Sums> = candidates.iter().map(|_| Sums::default()).collect();
    for (w, tokens) in windows.iter().enumerate() {
        let begin = Instant::now();
        let window = Continuations::new(&mut context).window(tokens, options.scored)?;
        let seconds = begin.elapsed().as_secs_f64() * options.read as f64 / total as f64;
        for (c, (candidate, sums)) in candidates.iter().zip(&mut sums).enumerate() {
            progress(w * candidates.len() + c, windows.len() * candidates.len());
            sums.seconds[0] += seconds;
            sums.add(candidate, &window, &mut context, options.chunk)?;
        }
    }
    let named = candidates.iter().zip(sums);
    Ok(named
        .map(|(candidate, sums)| sums.measured(candidate.name))
        .collect())
}

#[derive(Default)]
struct Sums {
    f16_bytes: f64,
    bytes: f64,
    means: Vec<f64>,
    worst: f64,
    seconds: [f64; 4],
}

impl Sums {
    /// Packs what was kept of a window, and lets the model go on from what comes back.
    fn add(
        &mut self,
        candidate: &Candidate<'_>,
        window: &Window,
        context: &mut Context<'_>,
        chunk: usize,
    ) -> Result<(), CacheError> {
        let begin = Instant::now();
        let way = candidate.how.way(&window.state, chunk)?;
        let mut packed = Vec::new();
        let done = pack(&window.state, way, chunk, None, &mut packed, &mut |_| ())?;
        self.seconds[1] += begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        let codebook = match candidate.how {
            How::Transform(encoder, _) => Some(encoder.codebook),
            _ => None,
        };
        let state = unpack_bytes(&packed, codebook, &Target::default())?;
        self.seconds[2] += begin.elapsed().as_secs_f64();
        let begin = Instant::now();
        context.restore_sequence(0, &state)?;
        self.seconds[3] += begin.elapsed().as_secs_f64();
        let found = Continuations::new(context).divergences(window, &state)?;
        self.f16_bytes += done.f16_bytes as f64;
        self.bytes += done.bytes as f64;
        self.means.push(mean(&found).0);
        self.worst = found.iter().copied().fold(self.worst, f64::max);
        Ok(())
    }

    fn measured(self, name: &str) -> Measured {
        let count = self.means.len() as f64;
        let (kld, error) = mean(&self.means);
        Measured {
            name: name.to_string(),
            ratio: self.f16_bytes / self.bytes,
            bytes: self.bytes / count,
            kld,
            error,
            worst: self.worst,
            seconds: self.seconds.map(|s| s / count),
        }
    }
}

/// Windows of the text, evenly spread, each with the token that begins a text.
fn windows(
    model: &Model,
    text: &str,
    options: &EvalCacheOptions,
) -> Result<Vec<Vec<Token>>, CacheError> {
    let tokens = model.tokenize(text, false, false)?;
    let begin = model.bos().filter(|_| model.add_bos());
    let body = options.read + options.scored - usize::from(begin.is_some());
    let available = tokens.len() / body.max(1);
    if available == 0 || body < 8 {
        return Err(CacheError::TextTooShort {
            tokens: tokens.len(),
            needed: body.max(8),
        });
    }
    let count = options.windows.clamp(1, available);
    let windows = (0..count).map(|i| {
        let first = i * available / count * body;
        let body = tokens[first..first + body].iter().copied();
        begin.into_iter().chain(body).collect()
    });
    Ok(windows.collect())
}
