//! Rotary pairs: which are kept, and where their elements are.

use crate::architecture::{Model, ModelTensor, Traits};

/// The rotary pairs kept in every head.
#[derive(Debug, Clone, PartialEq)]
pub struct Pairs {
    /// Their numbers, ascending.
    pub kept: Vec<usize>,
    /// For each block, query head and kept pair: the complex number by which queries are
    /// multiplied to compensate for the removed pairs.
    pub factors: Vec<Vec<Vec<[f64; 2]>>>,
}

impl Pairs {
    /// What makes a block's queries, a matrix or a bias of all heads of `length` elements, as it is
    /// without the removed pairs: of the same shape, with zeros in their places.
    pub fn turn(
        &self,
        w: &[f32],
        tensor: &ModelTensor,
        block: usize,
        model: &Model,
        length: usize,
    ) -> Vec<f32> {
        let columns = columns(tensor);
        let [first, second] = pair_elements(&model.architecture, length);
        let mut out = vec![0.0; w.len()];
        let heads = w.chunks_exact(length * columns);
        let heads = heads.zip(out.chunks_exact_mut(length * columns));
        for ((head, out), factors) in heads.zip(&self.factors[block]) {
            for (pair, [re, im]) in self.kept.iter().zip(factors) {
                let (i, j) = (first(*pair) * columns, second(*pair) * columns);
                for c in 0..columns {
                    let (x, y) = (f64::from(head[i + c]), f64::from(head[j + c]));
                    out[i + c] = (re * x - im * y) as f32;
                    out[j + c] = (re * y + im * x) as f32;
                }
            }
        }
        out
    }
}

/// Elements of a matrix's row; one, of a bias.
pub(super) fn columns(tensor: &ModelTensor) -> usize {
    match tensor.shape[..] {
        [_] => 1,
        _ => tensor.row_len() as usize,
    }
}

/// The places of a rotary pair's two elements in a head.
pub fn pair_elements(architecture: &str, length: usize) -> [Box<dyn Fn(usize) -> usize + Sync>; 2] {
    if Traits::of(architecture).neighbours {
        [Box::new(|p| 2 * p), Box::new(|p| 2 * p + 1)]
    } else {
        [Box::new(|p| p), Box::new(move |p| p + length / 2)]
    }
}
