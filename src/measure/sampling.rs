//! A text of the model's own making: what it says when nobody asks it anything in particular.
//!
//! Sequences are sampled side by side from the model's own distribution, at temperature 1 and with
//! nothing cut off, so that its inputs while it reads the text are as they are in use. Where the model
//! has a chat template, half of them begin with a user's turn that is left to the model too.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::llama::context::{BatchToken, Context, ContextOptions};
use crate::llama::model::{LlamaError, Model, Token};

/// Sequences side by side.
const SEQUENCES: usize = 32;

/// A sequence is begun anew after so many tokens, where it does not end before.
const LENGTH: usize = 512;

/// What stands for a user's words in a template.
const MARK: &str = "\u{1}";

/// Samples about so many tokens, as a text. The same model and seed give the same text. `done` is called
/// with the tokens so far.
///
/// # Errors
/// The model has no token to begin with, or llama.cpp's words.
pub fn sample(
    model: &Model,
    tokens: usize,
    seed: u64,
    done: &mut dyn FnMut(usize),
) -> Result<String, LlamaError> {
    let beginnings = beginnings(model)?;
    let count = SEQUENCES.min(tokens.div_ceil(LENGTH)).max(1);
    let length = LENGTH.min(model.n_ctx_train() as usize);
    let mut context = Context::new(
        model,
        &ContextOptions {
            ctx: length as u32,
            sequences: count as u32,
            batch: (count * length) as u32,
            ..ContextOptions::default()
        },
    )?;
    let begin = |number: usize| Sequence {
        tokens: beginnings[number % beginnings.len()].clone(),
        read: 0,
        prompt: beginnings[number % beginnings.len()].len(),
        random: ChaCha8Rng::seed_from_u64(seed ^ (number as u64) << 16),
    };
    let mut begun = count;
    let mut running: Vec<Sequence> = (0..count).map(begin).collect();
    let mut texts = Vec::new();
    let mut made = 0;
    while made < tokens {
        let mut batch = Vec::new();
        for (number, sequence) in running.iter_mut().enumerate() {
            sequence.enter(number, &mut batch);
        }
        context.decode(&batch)?;
        // One thread: those of llama.cpp wait busily for the next step.
        let rows = context.try_logits()?.chunks(model.n_vocab());
        let each = running.iter_mut().zip(rows);
        each.for_each(|(sequence, logits)| sequence.choose(logits));
        made += running.len();
        done(made.min(tokens));
        for (number, sequence) in running.iter_mut().enumerate() {
            let is_over = sequence.tokens.last().is_some_and(|t| model.is_end(*t));
            if is_over || sequence.tokens.len() >= length {
                texts.push(sequence.text(model)?);
                context.forget(number);
                *sequence = begin(begun);
                begun += 1;
            }
        }
    }
    for sequence in &running {
        texts.push(sequence.text(model)?);
    }
    Ok(texts.join("\n\n"))
}

struct Sequence {
    tokens: Vec<Token>,
    /// Tokens that have been evaluated.
    read: usize,
    /// Tokens that were not sampled.
    prompt: usize,
    random: ChaCha8Rng,
}

impl Sequence {
    /// Puts what was not evaluated yet into a batch.
    fn enter(&mut self, number: usize, batch: &mut Vec<BatchToken>) {
        for position in self.read..self.tokens.len() {
            batch.push(BatchToken {
                token: self.tokens[position],
                position: position as i32,
                sequence: number as i32,
                logits: position + 1 == self.tokens.len(),
            });
        }
        self.read = self.tokens.len();
    }

    /// Chooses the next token by its probability.
    fn choose(&mut self, logits: &[f32]) {
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let shares: Vec<f32> = logits.iter().map(|l| (l - most).exp()).collect();
        let total: f64 = shares.iter().map(|s| f64::from(*s)).sum();
        let mut left = self.random.random::<f64>() * total;
        let mut chosen = 0;
        for (token, share) in shares.into_iter().enumerate() {
            if share > 0.0 {
                chosen = token;
                left -= f64::from(share);
            }
            if left < 0.0 {
                break;
            }
        }
        self.tokens.push(chosen as Token);
    }

    /// What was sampled.
    fn text(&self, model: &Model) -> Result<String, LlamaError> {
        let mut bytes = Vec::new();
        for token in &self.tokens[self.prompt..] {
            bytes.extend(model.piece(*token, false)?);
        }
        Ok(String::from_utf8_lossy(&bytes).trim().to_string())
    }
}

/// What sequences begin with: the token that begins a text, and an open turn of a user's.
fn beginnings(model: &Model) -> Result<Vec<Vec<Token>>, LlamaError> {
    let first = model.bos().or(model.eos()).or(model.eot());
    let mut all: Vec<Vec<Token>> = first.map(|token| vec![token]).into_iter().collect();
    // A model without a template that llama.cpp knows is no chat model.
    let prompt = model.chat_prompt(&[("user", MARK)]).ok();
    if let Some((opening, _)) = prompt.as_deref().and_then(|p| p.split_once(MARK)) {
        let tokens = model.tokenize(opening, true, true)?;
        if !tokens.is_empty() && tokens.len() < LENGTH / 2 {
            all.push(tokens);
        }
    }
    if all.is_empty() {
        return Err(LlamaError::NoTokenizer);
    }
    Ok(all)
}
