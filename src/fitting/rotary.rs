//! Measures on a text which rotary pairs a model's attention can do without.

use rayon::prelude::*;

use super::observe::observe;
use super::side_by_side::{FitError, FitOptions, FitText};
use crate::architecture::{ModelTensor, role};
use crate::llama::activations::LinearInput;
use crate::llama::model;
use crate::method::refit::forward;
use crate::method::rotary_pairs::{PairScores, choose};
use crate::plan::{Subject, TensorError, TransformError};
use crate::structure::{Blocks, Pairs, Whole, own_scale, pair_elements};

/// Chunks that are enough to distinguish a head's pairs.
const CHUNKS: usize = 4;

/// Attention is observed at every multiple of this position.
const STRIDE: usize = 16;

/// Chooses `stay` rotary pairs by their contribution to all heads' scores on a text. Pairs turn by
/// `frequencies` from one position to the next.
///
/// # Errors
/// [`FitError`].
pub fn rotary_pairs(
    whole: &Whole<'_>,
    running: &model::Model,
    text: &FitText<'_>,
    frequencies: &[f64],
    stay: usize,
) -> Result<Pairs, FitError> {
    let (subject, blocks) = (whole.subject, &whole.blocks);
    let model = subject.model;
    let heads_of = |block: usize| {
        let attention = blocks.all[block].attention.as_ref();
        attention.map_or(0, |a| a.kv_heads * blocks.shared_by)
    };
    let unseen = || PairScores::new(blocks.key_length / 2);
    let mut scores: Vec<Vec<PairScores>> = (0..blocks.all.len())
        .map(|block| (0..heads_of(block)).map(|_| unseen()).collect())
        .collect();
    let text = FitText {
        options: FitOptions {
            chunks: text.options.chunks.min(CHUNKS),
            ..text.options.clone()
        },
        words: text.words,
    };
    let turn = Turn {
        blocks,
        frequencies,
        scale: own_scale(model).unwrap_or((blocks.key_length as f64).powf(-0.5)) as f32,
        elements: pair_elements(&model.architecture, blocks.key_length),
    };
    observe(
        running,
        &text,
        |input| block_of(input).is_some(),
        &mut |input, rows| {
            let block = block_of(input).unwrap_or(0);
            let Some(attention) = &blocks.all[block].attention else {
                return Ok(());
            };
            let linear = |tensors: &[usize]| -> Result<Vec<f32>, FitError> {
                let tensors: Vec<&ModelTensor> =
                    tensors.iter().map(|i| &model.tensors[*i]).collect();
                let product = apply(&subject, &tensors, rows, input.width);
                Ok(product.map_err(TensorError::of(&tensors[0].name))?)
            };
            let q = turn.turned(linear(&attention.q)?, blocks.shared_by * attention.kv_heads);
            let k = turn.turned(linear(&attention.k)?, attention.kv_heads);
            let heads = scores[block].par_iter_mut().enumerate();
            heads.for_each(|(head, scores)| {
                turn.add(&q[head], &k[head / blocks.shared_by], scores);
            });
            Ok(())
        },
    )?;
    let all: Vec<PairScores> = scores.into_iter().flatten().collect();
    stronger(&all, stay, (0..blocks.all.len()).map(heads_of))
}

/// The kept pairs, and their factors for the heads of each block.
fn stronger(
    scores: &[PairScores],
    stay: usize,
    heads: impl Iterator<Item = usize>,
) -> Result<Pairs, FitError> {
    let (kept, factors) = choose(scores, stay).map_err(TensorError::of("rope_freqs.weight"))?;
    let mut factors = factors.into_iter();
    Ok(Pairs {
        kept,
        factors: heads.map(|n| factors.by_ref().take(n).collect()).collect(),
    })
}

/// The block whose queries read an input.
fn block_of(input: &LinearInput) -> Option<usize> {
    let mut readers = input.readers.iter();
    readers.find_map(|r| match role(&r.weight) {
        (Some(block), "attn_q") => Some(block as usize),
        _ => None,
    })
}

/// A weight, and a bias where there is one, applied to rows.
fn apply(
    subject: &Subject<'_>,
    tensors: &[&ModelTensor],
    rows: &[f32],
    width: usize,
) -> Result<Vec<f32>, TransformError> {
    let all = |t: &ModelTensor| subject.values(t);
    let outputs = tensors[0].row_count() as usize;
    let mut out = forward(rows, &all(tensors[0])?, width, outputs);
    if let Some(bias) = tensors.get(1) {
        let bias = all(bias)?;
        let rows = out.chunks_exact_mut(outputs);
        rows.for_each(|row| row.iter_mut().zip(&bias).for_each(|(v, b)| *v += b));
    }
    Ok(out)
}

/// How heads' elements turn with the position.
struct Turn<'a> {
    blocks: &'a Blocks,
    frequencies: &'a [f64],
    /// What scores are multiplied by.
    scale: f32,
    elements: [Box<dyn Fn(usize) -> usize + Sync>; 2],
}

impl Turn<'_> {
    /// Queries or keys of one chunk, turned: for each head, rows of real and imaginary parts of all
    /// pairs in turn.
    fn turned(&self, rows: Vec<f32>, heads: usize) -> Vec<Vec<f32>> {
        let length = self.blocks.key_length;
        let [first, second] = &self.elements;
        let of_head = |head: usize| {
            let rows = rows.chunks_exact(heads * length).enumerate();
            let each = rows.flat_map(|(position, row)| {
                let head = &row[head * length..(head + 1) * length];
                let pairs = self.frequencies.iter().enumerate();
                pairs.flat_map(move |(pair, frequency)| {
                    let (sin, cos) = (frequency * position as f64).sin_cos();
                    let (sin, cos) = (sin as f32, cos as f32);
                    let (x, y) = (head[first(pair)], head[second(pair)]);
                    [cos * x - sin * y, sin * x + cos * y]
                })
            });
            each.collect()
        };
        (0..heads).into_par_iter().map(of_head).collect()
    }

    /// Adds what some queries of a head do with the keys before them.
    fn add(&self, q: &[f32], k: &[f32], scores: &mut PairScores) {
        let length = self.blocks.key_length;
        let queries = q.chunks_exact(length).enumerate();
        for (position, query) in queries.skip(STRIDE / 2).step_by(STRIDE) {
            let keys = k.chunks_exact(length).take(position + 1);
            let mut products: Vec<f32> = keys
                .flat_map(|key| {
                    let pairs = query.chunks_exact(2).zip(key.chunks_exact(2));
                    // q·k̄.
                    pairs.flat_map(|(q, k)| {
                        let re = q[0] * k[0] + q[1] * k[1];
                        let im = q[1] * k[0] - q[0] * k[1];
                        [self.scale * re, self.scale * im]
                    })
                })
                .collect();
            scores.add(&mut products);
        }
    }
}
