//! Two factors of several matrices that read the same input: one A for all, a B for each. Stacked,
//! they are one matrix, whose whitened svd leaves the least sum of output errors; weights say what
//! a unit of each matrix's error counts.

use super::gram::Gram;
use super::low_rank::{Decomposition, LowRankError, decompose};
use super::svd::Factors;

/// Matrices decomposed together.
pub struct Joint<'a> {
    /// All rows, each scaled by the root of its matrix's weight.
    scaled: Vec<f32>,
    /// Rows and root of the weight of each matrix.
    members: Vec<(usize, f32)>,
    cols: usize,
    decomposition: Decomposition<'a>,
}

impl<'a> Joint<'a> {
    /// Decomposes matrices of `rows` rows each, one after another in `w`. Without weights each
    /// counts by its error relative to its own output.
    ///
    /// # Errors
    /// As [`decompose`].
    pub fn decompose(
        w: &[f32],
        rows: &[usize],
        cols: usize,
        gram: Option<Gram<'a>>,
        weights: Option<&[f64]>,
    ) -> Result<Joint<'a>, LowRankError> {
        let mut scaled = w.to_vec();
        let mut rest = scaled.as_mut_slice();
        let mut members = Vec::new();
        for (i, rows) in rows.iter().enumerate() {
            let (w, others) = rest.split_at_mut(rows * cols);
            rest = others;
            let weight = match weights {
                Some(weights) => weights[i],
                None => gram.map_or(1.0, |g| 1.0 / g.output_energy(w, *rows)),
            };
            // An output of nothing counts nothing, but its rows must come back.
            let root = if weight > 0.0 && weight.is_finite() {
                weight.sqrt() as f32
            } else {
                1.0
            };
            w.iter_mut().for_each(|v| *v *= root);
            members.push((*rows, root));
        }
        Ok(Joint {
            decomposition: decompose(&scaled, scaled.len() / cols, cols, gram)?,
            scaled,
            members,
            cols,
        })
    }

    /// The weighted energy that each rank adds, descending.
    pub fn energies(&self) -> Vec<f64> {
        self.decomposition.energies()
    }

    /// The factor of the input, and each matrix's own.
    ///
    /// # Errors
    /// As [`Decomposition::factors`].
    pub fn factors(&self, rank: usize) -> Result<(Vec<f32>, Vec<Vec<f32>>), LowRankError> {
        let rows = self.scaled.len() / self.cols;
        let Factors { a, b } = self
            .decomposition
            .factors(&self.scaled, rows, self.cols, rank)?;
        let mut rest = b.as_slice();
        let mut own = Vec::new();
        for (rows, root) in &self.members {
            let (b, others) = rest.split_at(rows * rank);
            rest = others;
            own.push(b.iter().map(|v| v / root).collect());
        }
        Ok((a, own))
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::{correlated, distance, noise};
    use super::super::svd::multiply_out;
    use super::*;

    #[test]
    fn all_ranks_restore_and_weights_move_the_error() {
        let (n, rows) = (12, [7, 5]);
        let w = noise(n * 12, 1);
        let g = correlated(n, 40, 2);
        let gram = Gram::new(&g, n).unwrap();
        let errors = |rank: usize, weights: Option<&[f64]>| {
            let joint = Joint::decompose(&w, &rows, n, Some(gram), weights).unwrap();
            let (a, own) = joint.factors(rank).unwrap();
            let mut at = 0;
            let mut errors = Vec::new();
            for (rows, b) in rows.iter().zip(own) {
                let w = &w[at..at + rows * n];
                at += rows * n;
                let back = multiply_out(&a, &b, n, *rows, rank);
                if rank == n {
                    assert!(distance(w, &back) < 1e-4);
                }
                errors.push(gram.output_error(w, &back, *rows));
            }
            (errors, joint.energies())
        };
        errors(n, None);
        let (even, _) = errors(5, Some(&[1.0, 1.0]));
        let weights = [100.0, 1.0];
        let (uneven, energies) = errors(5, Some(&weights));
        assert!(uneven[0] < even[0] && uneven[1] > even[1]);
        // The energies beyond a rank are the weighted sum of the errors.
        let left: f64 = energies[5..].iter().sum();
        let sum = weights[0] * uneven[0] + weights[1] * uneven[1];
        assert!((left - sum).abs() < 1e-4 * sum);
    }
}
