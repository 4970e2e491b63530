//! Rotary pairs given up by all heads alike, and queries turned so that the rest stands in for them.
//!
//! A score of attention is a sum over pairs, Re(q·k̄) of two complex numbers. What softmax makes of
//! a change of scores is, to second order, its variance under the attention's weights. Of each head
//! it is a quadratic form in what each pair gives, real and imaginary parts: q may be multiplied by
//! any complex number at no cost, so both serve. Pairs then leave as inputs do in optimal brain
//! surgeon ([`nystrom`](super::nystrom)), the forms of all heads summed.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use super::error::MethodError;
use super::linear::cholesky;

/// Added to the diagonal, as a fraction of its mean.
const DAMPING: f64 = 1e-3;

/// What a head's queries are multiplied by for each pair: real and imaginary part of a complex number.
pub type Factors = Vec<[f64; 2]>;

/// What the pairs of one head give to its scores.
#[derive(Debug, Clone, PartialEq)]
pub struct PairScores {
    /// Their covariance under the attention's weights, of the real and the imaginary part of each
    /// pair in turn.
    covariance: Mat<f64>,
}

impl PairScores {
    /// Nothing seen yet of so many pairs.
    pub fn new(pairs: usize) -> PairScores {
        PairScores {
            covariance: Mat::zeros(2 * pairs, 2 * pairs),
        }
    }

    /// Adds a query: the real and imaginary parts of q·k̄ with each key that it sees, rows of two
    /// for each pair, scaled as scores are.
    pub fn add(&mut self, products: &mut [f32]) {
        let width = self.covariance.ncols();
        let keys = products.chunks_exact(width);
        let scores: Vec<f32> = keys.map(|row| row.iter().step_by(2).sum()).collect();
        let most = scores.iter().fold(f32::MIN, |m, s| m.max(*s));
        let mut weights: Vec<f32> = scores.iter().map(|s| (s - most).exp()).collect();
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
        let mut mean = vec![0f32; width];
        for (row, weight) in products.chunks_exact(width).zip(&weights) {
            let pairs = mean.iter_mut().zip(row);
            pairs.for_each(|(m, v)| *m += weight * v);
        }
        for (row, weight) in products.chunks_exact_mut(width).zip(&weights) {
            let root = weight.sqrt();
            let pairs = row.iter_mut().zip(&mean);
            pairs.for_each(|(v, m)| *v = root * (*v - m));
        }
        let rows = MatRef::from_row_major_slice(products, weights.len(), width);
        let mut seen = Mat::<f32>::zeros(width, width);
        matmul(
            seen.as_mut(),
            Accum::Replace,
            rows.transpose(),
            rows,
            1.0,
            Par::Seq,
        );
        for (to, from) in self.covariance.col_iter_mut().zip(seen.col_iter()) {
            to.iter_mut()
                .zip(from.iter())
                .for_each(|(t, f)| *t += f64::from(*f));
        }
    }
}

/// Which pairs stay in all heads, ascending, and each head's factors for them.
///
/// # Errors
/// [`MethodError::Rank`] for a number of pairs that is not there, [`MethodError::NoConvergence`].
pub fn choose(
    heads: &[PairScores],
    stay: usize,
) -> Result<(Vec<usize>, Vec<Factors>), MethodError> {
    let pairs = heads.first().map_or(0, |h| h.covariance.ncols() / 2);
    if stay == 0 || stay > pairs {
        return Err(MethodError::Rank {
            rank: stay,
            limit: pairs,
        });
    }
    let mut states: Vec<State> = heads.iter().map(State::of).collect::<Result<_, _>>()?;
    let mut left: Vec<usize> = (0..pairs).collect();
    while left.len() > stay {
        let cost = |pair: usize| -> f64 { states.iter().map(|s| s.cost(pair)).sum() };
        let costs = left.iter().map(|pair| (cost(*pair), *pair));
        let Some((_, cheapest)) = costs.min_by(|a, b| a.0.total_cmp(&b.0)) else {
            break;
        };
        states.iter_mut().for_each(|s| s.give_up(cheapest));
        left.retain(|pair| *pair != cheapest);
    }
    let factors = states.iter().map(|s| {
        // Re((a − ib)·z) is a·Re z + b·Im z.
        left.iter().map(|p| [s.w[2 * p], -s.w[2 * p + 1]]).collect()
    });
    let factors = factors.collect();
    Ok((left, factors))
}

/// A head's scores as a sum of what is left, fitted, and the inverse of its covariance.
struct State {
    w: Vec<f64>,
    inverse: Mat<f64>,
}

impl State {
    fn of(head: &PairScores) -> Result<State, MethodError> {
        let mut covariance = head.covariance.clone();
        let n = covariance.ncols();
        let mean = (0..n).map(|i| covariance[(i, i)]).sum::<f64>() / n as f64;
        // A head that looks at one key only: all pairs alike.
        let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        (0..n).for_each(|i| covariance[(i, i)] += damping);
        let root = cholesky(covariance).ok_or(MethodError::NoConvergence)?;
        let mut inverse = Mat::<f64>::identity(n, n);
        super::linear::solve(&root, &mut inverse);
        Ok(State {
            w: (0..n).map(|i| if i % 2 == 0 { 1.0 } else { 0.0 }).collect(),
            inverse,
        })
    }

    /// (G⁻¹ of the pair)⁻¹·w of the pair.
    fn replacement(&self, pair: usize) -> [f64; 2] {
        let (i, j) = (2 * pair, 2 * pair + 1);
        let (a, b, d) = (
            self.inverse[(i, i)],
            self.inverse[(i, j)],
            self.inverse[(j, j)],
        );
        let determinant = a * d - b * b;
        let (x, y) = (self.w[i], self.w[j]);
        [(d * x - b * y) / determinant, (a * y - b * x) / determinant]
    }

    fn cost(&self, pair: usize) -> f64 {
        let [u, v] = self.replacement(pair);
        u * self.w[2 * pair] + v * self.w[2 * pair + 1]
    }

    fn give_up(&mut self, pair: usize) {
        let (i, j) = (2 * pair, 2 * pair + 1);
        let [u, v] = self.replacement(pair);
        let leaving = [
            self.inverse.col(i).to_owned(),
            self.inverse.col(j).to_owned(),
        ];
        for (k, w) in self.w.iter_mut().enumerate() {
            *w -= u * leaving[0][k] + v * leaving[1][k];
        }
        let (a, b, d) = (leaving[0][i], leaving[0][j], leaving[1][j]);
        let determinant = a * d - b * b;
        for k in 0..self.inverse.ncols() {
            let (x, y) = (leaving[0][k], leaving[1][k]);
            let [u, v] = [(d * x - b * y) / determinant, (a * y - b * x) / determinant];
            let column = self.inverse.col_as_slice_mut(k).iter_mut().enumerate();
            column.for_each(|(r, value)| *value -= u * leaving[0][r] + v * leaving[1][r]);
        }
        for gone in [i, j] {
            self.w[gone] = 0.0;
            self.inverse.col_as_slice_mut(gone).fill(0.0);
            (0..self.w.len()).for_each(|r| self.inverse[(gone, r)] = 0.0);
            self.inverse[(gone, gone)] = 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::noise;
    use super::*;

    #[test]
    fn pairs_that_give_nothing_leave_and_repeated_ones_are_replaced() {
        let pairs = 5;
        let mut heads = vec![PairScores::new(pairs), PairScores::new(pairs)];
        for (h, head) in heads.iter_mut().enumerate() {
            for query in 0..20 {
                let mut products = noise(30 * 2 * pairs, 100 * h as u64 + query);
                for row in products.chunks_mut(2 * pairs) {
                    // Nothing; and pair 3 is 2i times pair 1.
                    row[4..6].fill(0.0);
                    (row[6], row[7]) = (-2.0 * row[3], 2.0 * row[2]);
                }
                head.add(&mut products);
            }
        }
        let (stay, factors) = choose(&heads, 3).unwrap();
        assert!(stay == [0, 1, 4] || stay == [0, 3, 4], "{stay:?}");
        for head in factors {
            let near = |f: [f64; 2], e: [f64; 2]| (f[0] - e[0]).hypot(f[1] - e[1]) < 0.02;
            assert!(
                near(head[0], [1.0, 0.0]) && near(head[2], [1.0, 0.0]),
                "{head:?}"
            );
            // z + 2i·z, or z + z/2i.
            let expected = if stay[1] == 1 {
                [1.0, 2.0]
            } else {
                [1.0, -0.5]
            };
            assert!(near(head[1], expected), "{head:?}");
        }
        assert!(choose(&heads, 6).is_err() && choose(&heads, 0).is_err());
    }
}
