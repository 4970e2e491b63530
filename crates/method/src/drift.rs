//! Inputs that have drifted: what a layer reads once the layers before it are compressed, beside what
//! it was trained for, and the weights that make up for the difference.
//!
//! With x what a layer read and x̂ what it reads now, G = E[x̂·x̂ᵀ] and C = E[x·x̂ᵀ], the
//! W* = W + W·(C − G)·(G + λ)⁻¹ minimises E‖W·x − W*·x̂‖² + λ·‖W − W*‖²: what the tokens say little of
//! stays as it was (GPTAQ, Li and others, 2025; Qronos, Zhang and others, 2025).
//!
//! Wide inputs are taken in blocks of neighbouring elements, as if those of different blocks were
//! uncorrelated: G and C are then block-diagonal.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::error::{MethodError, check_weights};
use crate::linear::{cholesky, solve};

/// Blocks begin at multiples of this, so that none cuts a block of a quantized type.
const ALIGNMENT: usize = 256;

/// How far weights follow a drift.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Following {
    /// The part of the correction that is made, from 0 to 1.
    pub blend: f64,
    /// λ as a fraction of the mean of G's diagonal.
    pub ridge: f64,
}

/// Sums over tokens.
#[derive(Debug, Clone)]
pub struct Drift {
    width: usize,
    tokens: usize,
    blocks: Vec<Block>,
}

#[derive(Debug, Clone)]
struct Block {
    columns: Range<usize>,
    /// Of what is symmetric, the half below the diagonal.
    gram: Mat<f32>,
    cross: Mat<f32>,
}

/// Equal blocks of at most about `most` neighbouring elements, that don't cut ggml's blocks.
pub fn blocks(width: usize, most: usize) -> Vec<Range<usize>> {
    let unit = if width.is_multiple_of(ALIGNMENT) {
        ALIGNMENT
    } else {
        32
    };
    if width <= most || !width.is_multiple_of(unit) {
        return std::iter::once(0..width).collect();
    }
    let units = width / unit;
    let parts = width.div_ceil(most).min(units);
    let at = |i: usize| units * i / parts * unit;
    (0..parts).map(|i| at(i)..at(i + 1)).collect()
}

/// Rows of the inputs of one layer.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// What the layer was trained for.
    pub original: &'a [f32],
    /// What it reads now.
    pub now: &'a [f32],
}

impl Drift {
    /// No tokens yet, of an input of `width` elements, in blocks of at most `most`.
    pub fn new(width: usize, most: usize) -> Drift {
        let block = |columns: Range<usize>| Block {
            gram: Mat::zeros(columns.len(), columns.len()),
            cross: Mat::zeros(columns.len(), columns.len()),
            columns,
        };
        Drift {
            width,
            tokens: 0,
            blocks: blocks(width, most).into_iter().map(block).collect(),
        }
    }

    /// Bytes of the sums, and of one matrix in double precision while a block is worked on.
    pub fn bytes(width: usize, most: usize) -> u64 {
        let blocks = blocks(width, most);
        let squares: usize = blocks.iter().map(|b| b.len() * b.len()).sum();
        let largest = blocks.iter().map(|b| b.len() * b.len()).max();
        8 * squares as u64 + 24 * largest.unwrap_or(0) as u64
    }

    /// Adds tokens.
    ///
    /// # Errors
    /// [`MethodError::Length`] where there are no whole rows, or not as many of each.
    pub fn add(&mut self, rows: Rows<'_>) -> Result<(), MethodError> {
        let n = self.width;
        let tokens = rows.now.len() / n.max(1);
        let whole = tokens * n == rows.now.len() && rows.original.len() == rows.now.len();
        if !whole || tokens == 0 {
            return Err(MethodError::Length {
                expected: rows.original.len(),
                found: rows.now.len(),
            });
        }
        for block in &mut self.blocks {
            let x = by_element(rows.original, n, &block.columns);
            let y = by_element(rows.now, n, &block.columns);
            add_lower(block.gram.as_mut(), y.transpose(), y.as_ref());
            add(block.cross.as_mut(), x.transpose(), y.as_ref());
        }
        self.tokens += tokens;
        Ok(())
    }

    /// Tokens that were added.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The blocks of the input, with G of each: n rows of n elements.
    pub fn grams(&self) -> impl Iterator<Item = (Range<usize>, Vec<f32>)> + '_ {
        let share = 1.0 / self.tokens.max(1) as f32;
        self.blocks.iter().map(move |block| {
            let n = block.columns.len();
            let mut values = vec![0f32; n * n];
            for j in 0..n {
                let column = &block.gram.col_as_slice(j)[j..];
                for (i, v) in (j..).zip(column) {
                    values[j * n + i] = share * v;
                    values[i * n + j] = share * v;
                }
            }
            (block.columns.clone(), values)
        })
    }

    /// What weights gain by following the drift; `None` where there was no input.
    ///
    /// # Errors
    /// [`MethodError::GramNotFinite`], [`MethodError::NoConvergence`] where G + λ has no factor.
    pub fn correction(&self, following: Following) -> Result<Option<Correction>, MethodError> {
        let share = 1.0 / self.tokens.max(1) as f32;
        let mut turned = Vec::new();
        for (block, (_, gram)) in self.blocks.iter().zip(self.grams()) {
            let n = block.columns.len();
            let mean = (0..n).map(|j| f64::from(gram[j * n + j])).sum::<f64>() / n as f64;
            if !mean.is_finite() {
                return Err(MethodError::GramNotFinite);
            }
            if mean <= 0.0 {
                return Ok(None);
            }
            let mut damped = MatRef::from_column_major_slice(&gram, n, n).to_owned();
            (0..n).for_each(|j| damped[(j, j)] += (following.ridge * mean) as f32);
            let l = cholesky(damped).ok_or(MethodError::NoConvergence)?;
            // Mᵀ = (G + λ)⁻¹·(C − G)ᵀ.
            let cross = transpose(block.cross.as_ref());
            let blend = following.blend as f32;
            let mut m = Mat::from_fn(n, n, |i, j| {
                blend * (share * cross[(i, j)] - gram[j * n + i])
            });
            solve(&l, &mut m);
            turned.push((block.columns.clone(), m));
        }
        Ok(Some(Correction {
            width: self.width,
            turned,
        }))
    }
}

/// What weights gain by following a drift.
#[derive(Debug, Clone)]
pub struct Correction {
    width: usize,
    /// Of each block ((C − G)·(G + λ)⁻¹)ᵀ.
    turned: Vec<(Range<usize>, Mat<f32>)>,
}

impl Correction {
    /// W* for `rows` rows of W.
    ///
    /// # Errors
    /// [`MethodError::Length`], [`MethodError::WeightsNotFinite`].
    pub fn apply(&self, w: &[f32], rows: usize) -> Result<Vec<f32>, MethodError> {
        let n = self.width;
        check_weights(w, &[rows, n])?;
        let mut out = w.to_vec();
        let own = MatRef::from_row_major_slice(w, rows, n);
        for (columns, turned) in &self.turned {
            let own = own.subcols(columns.start, columns.len());
            let all = MatMut::from_row_major_slice_mut(&mut out, rows, n);
            let mut all = all.subcols_mut(columns.start, columns.len());
            matmul(
                all.as_mut(),
                Accum::Add,
                own,
                turned.transpose(),
                1.0,
                Par::Seq,
            );
        }
        Ok(out)
    }
}

/// The transpose, in tiles that stay in the cache.
fn transpose(m: MatRef<'_, f32>) -> Mat<f32> {
    const TILE: usize = 32;
    let mut out = Mat::zeros(m.ncols(), m.nrows());
    for i in (0..m.nrows()).step_by(TILE) {
        for j in (0..m.ncols()).step_by(TILE) {
            let (rows, cols) = (TILE.min(m.nrows() - i), TILE.min(m.ncols() - j));
            let tile = m.submatrix(i, j, rows, cols);
            out.as_mut()
                .submatrix_mut(j, i, cols, rows)
                .copy_from(tile.transpose());
        }
    }
    out
}

/// Some elements of rows of n, each with its tokens one after another: rows whose distance is a power of
/// two get into one another's way in a processor's cache, and products of them are three times as slow.
fn by_element(rows: &[f32], n: usize, columns: &Range<usize>) -> Mat<f32> {
    const TILE: usize = 16;
    let tokens = rows.len() / n;
    let mut out = Mat::zeros(tokens, columns.len());
    for first in (0..columns.len()).step_by(TILE) {
        let len = TILE.min(columns.len() - first);
        let tile = out.as_mut().subcols_mut(first, len);
        let mut tile: Vec<&mut [f32]> = tile
            .col_iter_mut()
            .filter_map(|c| c.try_as_col_major_mut())
            .map(|c| c.as_slice_mut())
            .collect();
        for (t, row) in rows.chunks_exact(n).enumerate() {
            let own = &row[columns.start + first..][..len];
            tile.iter_mut().zip(own).for_each(|(c, v)| c[t] = *v);
        }
    }
    out
}

/// Adds to the half below the diagonal of what is symmetric.
fn add_lower(sum: MatMut<'_, f32>, left: MatRef<'_, f32>, right: MatRef<'_, f32>) {
    triangular::matmul(
        sum,
        BlockStructure::TriangularLower,
        Accum::Add,
        left,
        BlockStructure::Rectangular,
        right,
        BlockStructure::Rectangular,
        1.0,
        Par::rayon(0),
    );
}

fn add(sum: MatMut<'_, f32>, left: MatRef<'_, f32>, right: MatRef<'_, f32>) {
    matmul(sum, Accum::Add, left, right, 1.0, Par::rayon(0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refit::forward;
    use crate::sample::{distance, noise};

    const FULLY: Following = Following {
        blend: 1.0,
        ridge: 1e-6,
    };

    fn drift(x: &[f32], y: &[f32], n: usize, most: usize) -> Drift {
        let mut drift = Drift::new(n, most);
        for (x, y) in x.chunks(100 * n).zip(y.chunks(100 * n)) {
            let rows = Rows {
                original: x,
                now: y,
            };
            drift.add(rows).unwrap();
        }
        drift
    }

    #[test]
    fn equal_inputs_leave_the_weights() {
        let (n, rows) = (9, 5);
        let (w, x) = (noise(rows * n, 1), noise(n * 5000, 2));
        let drift = drift(&x, &x, n, n);
        let correction = drift.correction(FULLY).unwrap().unwrap();
        assert!(distance(&w, &correction.apply(&w, rows).unwrap()) < 1e-5);
        let (_, gram) = drift.grams().next().unwrap();
        assert!((gram[0] - x.chunks(n).map(|r| r[0] * r[0]).sum::<f32>() / 5000.0).abs() < 1e-4);
    }

    #[test]
    fn inputs_that_are_mixed_are_unmixed() {
        let (n, rows) = (8, 6);
        let (w, x) = (noise(rows * n, 1), noise(n * 400, 2));
        let mut mix = noise(n * n, 3);
        (0..n).for_each(|i| mix[i * n + i] += 4.0);
        let y = forward(&x, &mix, n, n);
        let correction = drift(&x, &y, n, n).correction(FULLY).unwrap().unwrap();
        let fitted = correction.apply(&w, rows).unwrap();
        let wanted = forward(&x, &w, n, rows);
        let before = distance(&wanted, &forward(&y, &w, n, rows));
        let after = distance(&wanted, &forward(&y, &fitted, n, rows));
        assert!(after < 0.01 * before && before > 0.5, "{before} {after}");
    }

    #[test]
    fn blocks_are_whole() {
        assert_eq!(blocks(576, 4096), std::slice::from_ref(&(0..576)));
        assert_eq!(blocks(8192, 4096), [0..4096, 4096..8192]);
        assert_eq!(blocks(14336, 4096).len(), 4);
        assert_eq!(blocks(1536, 512), [0..512, 512..1024, 1024..1536]);
        let all = blocks(11008, 4096);
        assert!(all.iter().all(|b| b.start.is_multiple_of(256)) && all[2].end == 11008);
        assert_eq!(blocks(10, 4), std::slice::from_ref(&(0..10)));
    }

    #[test]
    fn nothing_is_learnt_from_nothing() {
        let zeros = vec![0.0; 40];
        assert!(
            drift(&zeros, &zeros, 4, 4)
                .correction(FULLY)
                .unwrap()
                .is_none()
        );
        let bad = Rows {
            original: &zeros,
            now: &zeros[1..],
        };
        assert!(Drift::new(4, 4).add(bad).is_err());
    }
}
