//! Embeds texts: one vector for each.

use std::ffi::c_int;

use llama_cpp_sys_2 as sys;

use super::context::{BatchToken, Context, ContextOptions};
use super::error::LlamaError;
use super::guard::{Failure, logged};
use super::model::Model;
pub use super::pooling::Pooling;
use super::vocabulary::Token;

impl Model {
    /// Whether it is an encoder, whose tokens see those behind them and which predicts none.
    pub fn encodes(&self) -> bool {
        self.own_words("attention.causal").as_deref() == Some("false")
    }

    /// Whether it is made to embed texts, and not to continue them.
    pub fn embeds(&self) -> bool {
        self.encodes() || self.pooling().is_some() || self.add_eos()
    }

    /// How texts become one row each, if the file says so.
    pub fn pooling(&self) -> Option<Pooling> {
        let id: sys::llama_pooling_type = self.own_words("pooling_type")?.parse().ok()?;
        Pooling::ALL.into_iter().find(|p| p.id() == id)
    }
}

/// The embedding of each text, of length 1. A model whose file does not say how rows are pooled takes
/// their mean.
///
/// # Errors
/// A text without tokens, or longer than the model was trained with, or llama.cpp's words.
pub fn embed(
    model: &Model,
    texts: &[Vec<Token>],
    pooling: Option<Pooling>,
    threads: Option<u32>,
) -> Result<Vec<Vec<f32>>, LlamaError> {
    let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
    let limit = model.n_ctx_train().max(1) as usize;
    let fits = |text: &Vec<Token>| (1..=limit).contains(&text.len());
    if let Some(text) = texts.iter().find(|text| !fits(text)) {
        return Err(LlamaError::TextLength {
            tokens: text.len(),
            limit,
        });
    }
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    // An encoder computes a text at once, and a pooled row is one of a single computation.
    let length = longest as u32;
    let options = ContextOptions {
        ctx: length,
        batch: length,
        ubatch: length,
        threads,
        pooling: Some(pooling.or(model.pooling()).unwrap_or(Pooling::Mean)),
        ..ContextOptions::default()
    };
    let mut context = Context::new(model, &options)?;
    let one = |text: &Vec<Token>| context.embed(text);
    texts.iter().map(one).collect()
}

impl Context<'_> {
    /// The embedding of a text.
    fn embed(&mut self, text: &[Token]) -> Result<Vec<f32>, LlamaError> {
        self.clear();
        let tokens = text.iter().zip(0..);
        let tokens = tokens.map(|(token, position)| BatchToken {
            token: *token,
            position,
            sequence: 0,
            logits: true,
        });
        self.decode(&tokens.collect::<Vec<_>>())?;
        let failed = |reason| LlamaError::Decode {
            tokens: text.len(),
            reason,
        };
        let mut row = vec![0f32; self.model().n_embd_out()];
        // SAFETY: the context lives, and the row has the length that is passed; the call waits for the
        // computation.
        let (got, log) = logged(|failure| unsafe {
            dwindle_embedding(self.raw(), row.as_mut_ptr(), row.len(), failure)
        });
        got.map_err(|stopped| failed(stopped.reason))?;
        let length = row
            .iter()
            .map(|v| f64::from(*v).powi(2))
            .sum::<f64>()
            .sqrt();
        if !(length > 0.0 && length.is_finite()) {
            let reason = match log.is_empty() {
                true => "the embedding has no direction".into(),
                false => log,
            };
            return Err(failed(reason));
        }
        row.iter_mut()
            .for_each(|v| *v = (f64::from(*v) / length) as f32);
        Ok(row)
    }
}

unsafe extern "C" {
    fn dwindle_embedding(
        context: *mut sys::llama_context,
        row: *mut f32,
        len: usize,
        failure: *mut Failure,
    ) -> c_int;
}
