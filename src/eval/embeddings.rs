//! How far an encoder's embeddings are from its reference's.

use serde::{Deserialize, Serialize};

use super::{Estimate, EvalError, EvalOptions};
use crate::llama::embedding::embed;
use crate::llama::model::{LlamaError, Model, Token};

/// Texts of fewer tokens, special ones counted, say little.
const FEWEST: usize = 8;

/// Cosines of a model's embeddings of texts and its reference's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cosines {
    /// Their mean.
    pub cosine: Estimate,
    /// The smallest.
    pub least: f64,
    /// Texts that were embedded.
    pub texts: usize,
    /// Their tokens, special ones counted.
    pub tokens: usize,
}

/// Compares embeddings of the lines of a text, each by itself and cut after `options.ctx` tokens. Lines of
/// fewer than 8 tokens are passed over; `options.chunks` is how many lines are taken.
///
/// # Errors
/// Models that tokenize differently, a text without such a line, or llama.cpp fails.
pub fn compare_embeddings(
    model: &Model,
    reference: &Model,
    text: &str,
    options: &EvalOptions,
) -> Result<Cosines, EvalError> {
    let texts = cut(reference, text, options)?;
    if cut(model, text, options)? != texts {
        return Err(EvalError::Tokenizer);
    }
    if texts.is_empty() {
        return Err(EvalError::NoLine { fewest: FEWEST });
    }
    let of = |model| embed(model, &texts, reference.pooling(), options.threads);
    let (ours, theirs) = (of(model)?, of(reference)?);
    let pairs = ours.iter().zip(&theirs);
    let cosines: Vec<f64> = pairs.map(|(a, b)| cosine(a, b)).collect();
    let count = cosines.len() as f64;
    let mean = cosines.iter().sum::<f64>() / count;
    let squares: f64 = cosines.iter().map(|c| (c - mean).powi(2)).sum();
    Ok(Cosines {
        cosine: Estimate {
            value: mean,
            error: (squares / (count * (count - 1.0).max(1.0))).sqrt(),
        },
        least: cosines.iter().copied().fold(1.0, f64::min),
        texts: texts.len(),
        tokens: texts.iter().map(Vec::len).sum(),
    })
}

/// The lines as tokens.
fn cut(model: &Model, text: &str, options: &EvalOptions) -> Result<Vec<Vec<Token>>, LlamaError> {
    let longest = options.ctx.min(model.n_ctx_train()) as usize;
    let most = options.chunks.unwrap_or(usize::MAX);
    let mut texts = Vec::new();
    for line in text.lines() {
        if texts.len() == most {
            break;
        }
        let mut tokens = model.tokenize(line, true, false)?;
        if tokens.len() < FEWEST {
            continue;
        }
        if let Some(last) = tokens.last().copied().filter(|_| tokens.len() > longest) {
            // What ends a text stays its end.
            tokens.truncate(longest - 1);
            tokens.push(last);
        }
        texts.push(tokens);
    }
    Ok(texts)
}

/// The cosine of two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::cosine;

    #[test]
    fn the_cosine_knows_no_length() {
        assert!((cosine(&[1.0, 0.0], &[3.0, 3.0]) - 0.5f64.sqrt()).abs() < 1e-12);
        assert!((cosine(&[0.1, 0.7], &[0.2, 1.4]) - 1.0).abs() < 1e-7);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
    }
}
