//! What calibration measured of a layer's inputs, as the methods see it.

use super::error::MethodError;
use super::linear::{product, widen_transposed};

/// The second moment of a linear layer's inputs: XᵀX divided by the number of tokens, symmetric.
#[derive(Debug, Clone, Copy)]
pub struct Gram<'a> {
    /// n rows of n elements.
    pub values: &'a [f32],
    /// The number of inputs.
    pub n: usize,
}

impl<'a> Gram<'a> {
    /// Checks that the values are n×n, finite and without a negative diagonal.
    ///
    /// # Errors
    /// [`MethodError::Length`], [`MethodError::GramNotFinite`].
    pub fn new(values: &'a [f32], n: usize) -> Result<Self, MethodError> {
        let gram = Self { values, n };
        gram.check(n)?;
        Ok(gram)
    }

    /// Holds it against the weights that it should belong to.
    pub(super) fn check(&self, cols: usize) -> Result<(), MethodError> {
        if self.n != cols {
            return Err(MethodError::GramWidth {
                expected: cols,
                found: self.n,
            });
        }
        let expected = self.n.saturating_mul(self.n);
        if self.values.len() != expected {
            return Err(MethodError::Length {
                expected,
                found: self.values.len(),
            });
        }
        let bad = self.values.iter().any(|v| !v.is_finite()) || self.diagonal().any(|v| v < 0.0);
        if bad {
            return Err(MethodError::GramNotFinite);
        }
        Ok(())
    }

    /// The mean square of each input.
    pub fn diagonal(&self) -> impl Iterator<Item = f64> + '_ {
        (0..self.n).map(|j| f64::from(self.values[j * (self.n + 1)]))
    }

    /// The mean of the diagonal: what damping is relative to.
    pub fn mean_square(&self) -> f64 {
        self.diagonal().sum::<f64>() / self.n.max(1) as f64
    }

    /// The energy that a matrix of `rows` rows of n elements gives per token: ‖E·X‖² / tokens,
    /// which is trace(E·G·Eᵀ). Of a difference W − Ŵ it is the output error.
    pub fn output_energy(&self, e: &[f32], rows: usize) -> f64 {
        let e = widen_transposed(e, rows, self.n);
        let g = widen_transposed(self.values, self.n, self.n);
        let ge = product(g.as_ref(), e.as_ref());
        (0..rows)
            .map(|i| {
                let pairs = ge.col_as_slice(i).iter().zip(e.col_as_slice(i));
                pairs.map(|(a, b)| a * b).sum::<f64>()
            })
            .sum()
    }

    /// The output error of a replacement: [`output_energy`](Self::output_energy) of w − ŵ.
    pub fn output_error(&self, w: &[f32], replacement: &[f32], rows: usize) -> f64 {
        let difference: Vec<f32> = w.iter().zip(replacement).map(|(a, b)| a - b).collect();
        self.output_energy(&difference, rows)
    }
}
