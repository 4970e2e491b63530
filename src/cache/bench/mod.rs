//! Measures caches of several lengths, numbers of texts and types: bytes, times, and what the model then says.

mod passkey;

use std::time::Instant;

use dwindle_formats::gguf::TensorType;
use dwindle_formats::state::{Section, State, Stream, read};
use serde::Serialize;

use self::passkey::Passkey;
use super::calibrate::CHUNK;
use super::error::CacheError;
use super::files::{How, unpack_bytes};
use super::timeline::Timeline;
use super::trial::mean;
use crate::eval::exact_divergence;
use crate::kv::{KvError, Target, pack};
use crate::llama::context::{BatchToken, Context, ContextOptions};
use crate::llama::model::{Model, Token};
use crate::llama::reading::{Passage, Wanted};

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchOptions {
    /// Tokens that are read of each text.
    pub lengths: Vec<usize>,
    /// Texts side by side.
    pub batches: Vec<usize>,
    /// Types of keys and values, beside F16.
    pub types: Vec<TensorType>,
    /// Tokens behind each text whose predictions are compared.
    pub scored: usize,
    /// How the model is run.
    pub context: ContextOptions,
}

/// Seconds, for all texts side by side.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Seconds {
    /// To read the texts.
    pub read: f64,
    /// To copy what is kept of them.
    pub save: f64,
    /// To pack it.
    pub pack: f64,
    /// To unpack it.
    pub unpack: f64,
    /// To put it back.
    pub restore: f64,
    /// To go on from there by one token each.
    pub step: f64,
}

/// What was measured of one length, number of texts and type.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Benched {
    /// Tokens of each text.
    pub length: usize,
    /// Texts.
    pub batch: usize,
    /// The type of keys and values.
    pub cache_type: String,
    /// Bytes of the keys and values of these tokens, computed from the widths of layers.
    pub computed: u64,
    /// Bytes that llama.cpp has allocated for keys, values and recurrent states.
    pub allocated: u64,
    /// Bytes of the saved states.
    pub saved: u64,
    /// Bytes of the packed ones.
    pub packed: u64,
    /// Bytes of keys and values in F16 for each packed one.
    pub ratio: f64,
    /// Times.
    pub seconds: Seconds,
    /// The mean divergence from F16 of what follows, as the cache is, in nats.
    pub kld: f64,
    /// The same behind packing and unpacking.
    pub packed_kld: f64,
    /// Its standard error over texts.
    pub error: f64,
    /// Texts in which a number was hidden.
    pub hidden: usize,
    /// Texts in which it was found.
    pub found: usize,
    /// The same behind packing and unpacking.
    pub packed_found: usize,
}

/// A text to be read, and what follows.
struct Text {
    tokens: Vec<Token>,
    rest: Vec<Token>,
    passkey: Option<Passkey>,
}

/// Measures everything. F16 comes first: the others are compared with it.
///
/// # Errors
/// A text that is too short, or llama.cpp's words.
pub fn bench(
    model: &Model,
    text: &str,
    how: How<'_>,
    options: &BenchOptions,
    timeline: &Timeline,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Benched>, CacheError> {
    let others = options.types.iter().filter(|ty| **ty != TensorType::F16);
    let types: Vec<TensorType> = [TensorType::F16]
        .into_iter()
        .chain(others.copied())
        .collect();
    let total = options.lengths.len() * options.batches.len() * types.len();
    let mut rows = Vec::with_capacity(total);
    for length in &options.lengths {
        for batch in &options.batches {
            let texts = texts(model, text, *length, (options.scored, *batch))?;
            let mut base = None;
            for ty in &types {
                progress(rows.len(), total);
                let run = Run {
                    model,
                    how,
                    texts: &texts,
                    options,
                    timeline,
                };
                rows.push(run.measure(*ty, &mut base)?);
            }
        }
    }
    Ok(rows)
}

/// What the model says behind texts.
struct Behind {
    /// Each text's mean divergence from the base.
    divergences: Vec<f64>,
    /// All logits, where there is no base.
    logits: Vec<f32>,
    /// To evaluate.
    seconds: f64,
}

#[derive(Clone, Copy)]
struct Run<'a> {
    model: &'a Model,
    how: How<'a>,
    texts: &'a [Text],
    options: &'a BenchOptions,
    timeline: &'a Timeline,
}

impl<'a> Run<'a> {
    fn measure(self, ty: TensorType, base: &mut Option<Vec<f32>>) -> Result<Benched, CacheError> {
        let mut seconds = Seconds::default();
        let mut context = self.context(ty)?;
        self.timed("read", &mut seconds.read, || {
            for (sequence, text) in self.texts.iter().enumerate() {
                let text = Passage::first(sequence, &text.tokens);
                // The last token's logits are there when all is computed.
                context.read(text, Wanted::Last)?;
            }
            Ok(())
        })?;
        let states = self.timed("save", &mut seconds.save, || {
            let sequences = 0..self.texts.len();
            Ok(sequences
                .map(|s| context.sequence_state(s))
                .collect::<Vec<_>>())
        })?;
        let first = read(&states[0]).map_err(KvError::from)?;
        let length = self.length();
        let saved = states.iter().map(|s| s.len() as u64).sum();
        let live = self.go_on(&mut context, base.as_deref())?;
        if base.is_none() {
            *base = Some(live.logits);
        }
        let found = self.found(&mut context, &states)?;
        let packing = self.timed("pack", &mut seconds.pack, || self.pack(&states))?;
        drop(states);
        let (packed, ratio) = packing;
        let bytes = packed.iter().map(|p| p.len() as u64).sum();
        let states = self.timed("unpack", &mut seconds.unpack, || self.unpack(&packed))?;
        self.timed("restore", &mut seconds.restore, || {
            let mut all = states.iter().enumerate();
            all.try_for_each(|(s, state)| Ok(context.restore_sequence(s, state)?))
        })?;
        let behind = self.go_on(&mut context, base.as_deref())?;
        seconds.step = behind.seconds / self.options.scored as f64;
        let behind = behind.divergences;
        let (packed_kld, error) = mean(&behind);
        Ok(Benched {
            length,
            batch: self.texts.len(),
            cache_type: ty.name().to_lowercase(),
            computed: row_bytes(&first) * self.texts.len() as u64,
            allocated: context.memory().context,
            saved,
            packed: bytes,
            ratio,
            seconds,
            kld: mean(&live.divergences).0,
            packed_kld,
            error,
            hidden: self.texts.iter().filter(|t| t.passkey.is_some()).count(),
            found,
            packed_found: self.found(&mut context, &states)?,
        })
    }

    fn length(&self) -> usize {
        self.texts[0].tokens.len()
    }

    fn timed<T>(
        self,
        stage: &'static str,
        seconds: &mut f64,
        work: impl FnOnce() -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        self.timeline.enter(stage);
        let begin = Instant::now();
        let done = work()?;
        *seconds = begin.elapsed().as_secs_f64();
        Ok(done)
    }

    /// A context for all texts, with room for what follows.
    fn context(self, ty: TensorType) -> Result<Context<'a>, CacheError> {
        let asked = self.texts.iter().filter_map(|t| t.passkey.as_ref());
        let room = asked.map(Passkey::room).max().unwrap_or(0);
        let options = ContextOptions {
            ctx: (self.length() + room.max(self.options.scored)) as u32,
            sequences: self.texts.len() as u32,
            outputs: self.texts.len() as u32,
            cache_type: ty,
            ..self.options.context.clone()
        };
        Ok(Context::new(self.model, &options)?)
    }

    /// Goes on with what follows, a token of each text at once.
    fn go_on(self, context: &mut Context<'_>, base: Option<&[f32]>) -> Result<Behind, CacheError> {
        self.timeline.enter("go on");
        let (scored, width) = (self.options.scored, self.model.n_vocab());
        let mut behind = Behind {
            divergences: vec![0.0; self.texts.len()],
            logits: Vec::new(),
            seconds: 0.0,
        };
        for t in 0..scored {
            let tokens = self
                .texts
                .iter()
                .zip(0..)
                .map(|(text, sequence)| BatchToken {
                    token: text.rest[t],
                    position: (self.length() + t) as i32,
                    sequence,
                    logits: true,
                });
            let begin = Instant::now();
            context.decode(&tokens.collect::<Vec<_>>())?;
            let logits = context.try_logits()?;
            behind.seconds += begin.elapsed().as_secs_f64();
            match base {
                None => behind.logits.extend_from_slice(logits),
                Some(base) => {
                    let base = base[t * logits.len()..].chunks_exact(width);
                    let rows = base.zip(logits.chunks_exact(width));
                    for (sum, (base, row)) in behind.divergences.iter_mut().zip(rows) {
                        *sum += exact_divergence(base, row) / scored as f64;
                    }
                }
            }
        }
        Ok(behind)
    }

    /// In how many texts the number is found, where each goes on from its state.
    fn found(self, context: &mut Context<'_>, states: &[Vec<u8>]) -> Result<usize, CacheError> {
        self.timeline.enter("ask");
        let mut found = 0;
        for (s, (text, state)) in self.texts.iter().zip(states).enumerate() {
            let Some(passkey) = &text.passkey else {
                continue;
            };
            context.restore_sequence(s, state)?;
            found += usize::from(passkey.is_found(context, s, self.length())?);
        }
        Ok(found)
    }

    /// Packed states, and how much smaller they are than in F16.
    fn pack(self, states: &[Vec<u8>]) -> Result<(Vec<Vec<u8>>, f64), CacheError> {
        let (mut all, mut f16) = (Vec::new(), 0);
        for state in states {
            let mut packed = Vec::new();
            let way = self.how.way(state, CHUNK)?;
            f16 += pack(state, way, CHUNK, None, &mut packed, &mut |_| ())?.f16_bytes;
            all.push(packed);
        }
        let bytes: usize = all.iter().map(Vec::len).sum();
        Ok((all, f16 as f64 / bytes.max(1) as f64))
    }

    fn unpack(self, packed: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, CacheError> {
        let codebook = match self.how {
            How::Transform(encoder, _) => Some(encoder.codebook),
            _ => None,
        };
        let all = packed.iter();
        all.map(|packed| unpack_bytes(packed, codebook, &Target::default()))
            .collect()
    }
}

/// Bytes that the keys and values of a text's cells take.
fn row_bytes(state: &State) -> u64 {
    let streams = state.sections.iter().flat_map(|section| match section {
        Section::Attention(attention) => attention.streams.as_slice(),
        Section::Recurrent { .. } => &[],
    });
    let of = |stream: &Stream| {
        let rows = stream.rows.iter();
        let parts = rows.flat_map(|rows| rows.keys.iter().chain(&rows.values));
        stream.positions.len() as u64 * parts.map(|p| p.row_bytes() as u64).sum::<u64>()
    };
    streams.map(of).sum()
}

/// Texts from places that are evenly spread, each with the token that begins a text and a number hidden in it, at another
/// depth in each.
fn texts(
    model: &Model,
    text: &str,
    length: usize,
    (scored, count): (usize, usize),
) -> Result<Vec<Text>, CacheError> {
    let all = model.tokenize(text, false, false)?;
    let begin = model.bos().filter(|_| model.add_bos());
    let needed = length.saturating_add(scored);
    let Some(spare) = all.len().checked_sub(needed) else {
        let tokens = all.len();
        return Err(CacheError::TextTooShort { tokens, needed });
    };
    let texts = (0..count).map(|i| {
        let first = i * spare / count;
        let mut tokens: Vec<Token> = begin.into_iter().collect();
        let rest = first + length - tokens.len();
        tokens.extend_from_slice(&all[first..rest]);
        let passkey = Passkey::new(model, i)?;
        let depth = (i as f64 + 0.5) / count as f64;
        let is_hidden = passkey.hide(&mut tokens, depth);
        Ok(Text {
            tokens,
            rest: all[rest..rest + scored].to_vec(),
            passkey: is_hidden.then_some(passkey),
        })
    });
    texts.collect()
}
