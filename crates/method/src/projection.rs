//! The map from what an attention layer's heads give to fewer directions of it.

use super::linear::{product_f32, transpose};

/// Which inputs of an output projection belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueHeads {
    /// Elements of a value.
    pub length: usize,
    /// Neighbouring query heads that share a key and value head.
    pub shared_by: usize,
    /// The key and value heads that stay, ascending.
    pub kept: Vec<usize>,
}

/// A map from an output projection's inputs to fewer: each key and value head that stays has a
/// basis, which all query heads that share it go through.
#[derive(Debug, Clone, PartialEq)]
pub struct Projection {
    pub(super) heads: ValueHeads,
    /// Elements of a value that stay.
    pub(super) reduced: usize,
    /// For each head that stays: `length` rows of `reduced` elements.
    pub(super) bases: Vec<Vec<f32>>,
}

impl Projection {
    /// Elements of a value that stay.
    pub fn reduced(&self) -> usize {
        self.reduced
    }

    /// Inputs that stay.
    pub fn width(&self) -> usize {
        self.heads.kept.len() * self.heads.shared_by * self.reduced
    }

    /// For each query head that stays: its first input, and its basis.
    fn each(&self) -> impl Iterator<Item = (usize, &[f32])> {
        first_inputs(&self.heads).map(|(first, basis)| (first, &self.bases[basis][..]))
    }

    /// Inputs, rows of n elements, as they reach the narrowed projection.
    pub fn narrow(&self, inputs: &[f32], n: usize) -> Vec<f32> {
        let (length, reduced, width) = (self.heads.length, self.reduced, self.width());
        let rows = inputs.len() / n;
        let mut out = vec![0.0; rows * width];
        for (place, (first, basis)) in self.each().enumerate() {
            let head = inputs
                .chunks_exact(n)
                .flat_map(|r| &r[first..first + length]);
            let head: Vec<f32> = head.copied().collect();
            let mapped = product_f32(&head, basis, rows, length, reduced);
            for (to, from) in out.chunks_exact_mut(width).zip(mapped.chunks(reduced)) {
                to[place * reduced..][..reduced].copy_from_slice(from);
            }
        }
        out
    }

    /// A narrowed projection, rows of [`Self::width`] elements, as one that reads all n inputs.
    pub fn widen(&self, w: &[f32], n: usize) -> Vec<f32> {
        let (length, reduced, width) = (self.heads.length, self.reduced, self.width());
        let rows = w.len() / width;
        let mut out = vec![0.0; rows * n];
        for (place, (first, basis)) in self.each().enumerate() {
            let part = w.chunks_exact(width);
            let part = part.flat_map(|r| &r[place * reduced..(place + 1) * reduced]);
            let part: Vec<f32> = part.copied().collect();
            let transposed = transpose(basis, length, reduced);
            let mapped = product_f32(&part, &transposed, rows, reduced, length);
            for (to, from) in out.chunks_exact_mut(n).zip(mapped.chunks(length)) {
                to[first..first + length].copy_from_slice(from);
            }
        }
        out
    }

    /// The rows that make the values of the heads that stay, `cols` elements each; of a bias, one.
    pub fn values(&self, w: &[f32], cols: usize) -> Vec<f32> {
        let (length, reduced) = (self.heads.length, self.reduced);
        let heads = self.heads.kept.iter().zip(&self.bases);
        heads
            .flat_map(|(head, basis)| {
                let transposed = transpose(basis, length, reduced);
                let rows = &w[head * length * cols..(head + 1) * length * cols];
                product_f32(&transposed, rows, reduced, length, cols)
            })
            .collect()
    }
}

/// For each query head that stays, its first input and the place of its basis.
pub(super) fn first_inputs(heads: &ValueHeads) -> impl Iterator<Item = (usize, usize)> {
    heads
        .kept
        .iter()
        .enumerate()
        .flat_map(move |(place, head)| {
            let first = head * heads.shared_by;
            (first..first + heads.shared_by).map(move |query| (query * heads.length, place))
        })
}
