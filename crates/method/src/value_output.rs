//! Values of fewer elements: what an attention layer's heads hand to its output projection, seen in
//! fewer directions that cost the output least.
//!
//! Attention mixes values linearly, so a basis of r columns may stand between the values of a key
//! and value head and the query heads that share it: W_V becomes Bᵀ·W_V, and the output projection
//! is fitted to Bᵀ·a, of all heads jointly, in closed form (the Nyström approximation with P, which
//! has the bases on its diagonal: W' = W·G·P·(PᵀGP)⁻¹). Bases begin with the leading directions of
//! each head, its values whitened and weighted by the output projection (as in the whitened SVD of
//! W_O·W_V), and then take turns with the fit: a step down the output's error, preconditioned by
//! what each head is and what is read of it. Whitening is as in SVD-LLM (Wang et al., 2024), keeping
//! values in fewer directions as in Palu (Chang et al., 2024).

use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Mat, MatRef, Par};

use super::eigen::Eigen;
use super::error::{MethodError, check_weights};
use super::gram::Gram;
use super::linear::{cholesky, product, solve, widen_transposed};
use super::projection::{Projection, ValueHeads, first_inputs};
use super::whitened::DAMPING;

/// How often the bases and the fit take turns.
const ROUNDS: usize = 10;

/// How much further than the best step for a fixed fit a basis goes: the fit follows it.
const BEYOND: f64 = 1.5;

/// The part of the output that may be lost without another turn.
const ENOUGH: f64 = 1e-4;

/// The bases in which values of `reduced` elements serve the output projection w best, `rows` rows
/// of the Gram's width. In them, a head's values have a second moment of one.
///
/// # Errors
/// [`MethodError`]: weights or Gram that are not finite or don't belong together, a length that is
/// not there, a decomposition that fails.
pub fn reduce(
    w: &[f32],
    rows: usize,
    gram: Gram<'_>,
    heads: &ValueHeads,
    reduced: usize,
) -> Result<Projection, MethodError> {
    if reduced == 0 || reduced > heads.length {
        return Err(MethodError::Rank {
            rank: reduced,
            limit: heads.length,
        });
    }
    let problem = Problem::new(w, rows, gram, heads)?;
    let mut bases = problem.leading(reduced)?;
    if reduced < heads.length {
        for _ in 0..ROUNDS {
            if !problem.step(&mut bases)? {
                break;
            }
        }
    }
    let narrowed = |b: &Mat<f64>| {
        (0..heads.length)
            .flat_map(|i| b.row(i).iter().map(|v| *v as f32).collect::<Vec<_>>())
            .collect()
    };
    Ok(Projection {
        heads: heads.clone(),
        reduced,
        bases: bases.iter().map(narrowed).collect(),
    })
}

/// The output projection w, `rows` rows of the Gram's width, fitted to what it reads through a
/// projection of its heads: rows of [`Projection::width`] elements.
///
/// # Errors
/// As [`reduce`].
pub fn refit(
    w: &[f32],
    rows: usize,
    gram: Gram<'_>,
    projection: &Projection,
) -> Result<Vec<f32>, MethodError> {
    let problem = Problem::new(w, rows, gram, &projection.heads)?;
    let (length, reduced) = (projection.heads.length, projection.reduced);
    let widened =
        |b: &Vec<f32>| Mat::from_fn(length, reduced, |i, j| f64::from(b[i * reduced + j]));
    let bases: Vec<Mat<f64>> = projection.bases.iter().map(widened).collect();
    let fitted = problem.fit(&problem.map(&bases))?;
    let columns = (0..rows).flat_map(|i| fitted.col_as_slice(i));
    Ok(columns.map(|v| *v as f32).collect())
}

/// An output projection, its input's second moment, and its heads.
struct Problem<'a> {
    heads: &'a ValueHeads,
    /// Wᵀ: n rows.
    wt: Mat<f64>,
    gram: Mat<f64>,
    /// What the projection gives per token.
    energy: f64,
    /// The Cholesky factor of each head's second moment, the mean of those who share it.
    roots: Vec<Mat<f64>>,
}

impl<'a> Problem<'a> {
    fn new(
        w: &[f32],
        rows: usize,
        gram: Gram<'_>,
        heads: &'a ValueHeads,
    ) -> Result<Problem<'a>, MethodError> {
        let n = gram.n;
        check_weights(w, &[rows, n])?;
        gram.check(n)?;
        let last = heads.kept.iter().max().map_or(0, |h| h + 1);
        let expected = last * heads.shared_by * heads.length;
        if expected > n {
            return Err(MethodError::Length { expected, found: n });
        }
        let moment = definite(gram)?;
        let wt = widen_transposed(w, rows, n);
        let seen = product(moment.as_ref(), wt.as_ref());
        let mut problem = Problem {
            heads,
            energy: inner(wt.as_ref(), seen.as_ref()),
            wt,
            gram: moment,
            roots: Vec::new(),
        };
        problem.roots = (0..heads.kept.len())
            .map(|head| cholesky(problem.mean(head)).ok_or(MethodError::NoConvergence))
            .collect::<Result<_, _>>()?;
        Ok(problem)
    }

    /// The first inputs of the query heads that share a head.
    fn queries(&self, head: usize) -> impl Iterator<Item = usize> {
        let first = self.heads.kept[head] * self.heads.shared_by;
        (first..first + self.heads.shared_by).map(|query| query * self.heads.length)
    }

    /// The mean second moment of a head's values, as the query heads mix them.
    fn mean(&self, head: usize) -> Mat<f64> {
        let length = self.heads.length;
        let share = 1.0 / self.heads.shared_by as f64;
        let mut sum = Mat::zeros(length, length);
        for at in self.queries(head) {
            sum += self.gram.submatrix(at, at, length, length) * faer::Scale(share);
        }
        sum
    }

    /// For each head, the directions that matter most to the output.
    fn leading(&self, reduced: usize) -> Result<Vec<Mat<f64>>, MethodError> {
        let length = self.heads.length;
        let of = |(head, root): (usize, &Mat<f64>)| {
            let mut weight = Mat::zeros(length, length);
            for at in self.queries(head) {
                let w = self.wt.subrows(at, length);
                weight += product(w, w.transpose());
            }
            let whitened = product(
                root.transpose(),
                product(weight.as_ref(), root.as_ref()).as_ref(),
            );
            let mut basis = Eigen::of(whitened)?.leading(reduced);
            solve_upper_triangular_in_place(root.transpose(), basis.as_mut(), Par::Seq);
            Ok(basis)
        };
        self.roots.iter().enumerate().map(of).collect()
    }

    /// P: n rows, with the bases on its diagonal.
    fn map(&self, bases: &[Mat<f64>]) -> Mat<f64> {
        let reduced = bases.first().map_or(0, Mat::ncols);
        let places: Vec<(usize, usize)> = first_inputs(self.heads).collect();
        let mut map = Mat::zeros(self.gram.nrows(), places.len() * reduced);
        for (place, (first, basis)) in places.into_iter().enumerate() {
            map.submatrix_mut(first, place * reduced, self.heads.length, reduced)
                .copy_from(&bases[basis]);
        }
        map
    }

    /// W' for a map, transposed: a column for each row of the output.
    fn fit(&self, map: &Mat<f64>) -> Result<Mat<f64>, MethodError> {
        let across = product(self.gram.as_ref(), map.as_ref());
        let inner = product(map.transpose(), across.as_ref());
        let root = cholesky(inner).ok_or(MethodError::NoConvergence)?;
        let mut fitted = product(across.transpose(), self.wt.as_ref());
        solve(&root, &mut fitted);
        Ok(fitted)
    }

    /// Moves the bases to where the output's error is less; false where they are there.
    fn step(&self, bases: &mut [Mat<f64>]) -> Result<bool, MethodError> {
        let length = self.heads.length;
        let map = self.map(bases);
        let fitted = self.fit(&map)?;
        let rest = &self.wt - product(map.as_ref(), fitted.as_ref());
        let pull = product(self.gram.as_ref(), rest.as_ref());
        if inner(rest.as_ref(), pull.as_ref()) <= ENOUGH * self.energy {
            return Ok(false);
        }
        let (mut steps, mut gain) = (Vec::new(), 0.0);
        let mut place = 0;
        for (head, root) in self.roots.iter().enumerate() {
            let reduced = bases[head].ncols();
            let mut down = Mat::zeros(length, reduced);
            let mut read = Mat::<f64>::zeros(reduced, reduced);
            for at in self.queries(head) {
                let x = fitted.subrows(place * reduced, reduced);
                down += product(pull.subrows(at, length), x.transpose());
                read += product(x, x.transpose());
                place += 1;
            }
            let mean = (0..reduced).map(|i| read[(i, i)]).sum::<f64>() / reduced as f64;
            if mean <= 0.0 {
                steps.push(Mat::zeros(length, reduced));
                continue;
            }
            (0..reduced).for_each(|i| read[(i, i)] += DAMPING * mean);
            let read = cholesky(read).ok_or(MethodError::NoConvergence)?;
            let mut turned = down.transpose().to_owned();
            solve(&read, &mut turned);
            let mut step = turned.transpose().to_owned();
            solve(root, &mut step);
            gain += inner(step.as_ref(), down.as_ref());
            steps.push(step);
        }
        let moved = product(self.map(&steps).as_ref(), fitted.as_ref());
        let energy = inner(
            moved.as_ref(),
            product(self.gram.as_ref(), moved.as_ref()).as_ref(),
        );
        if !(gain > 0.0 && energy > 0.0) {
            return Ok(false);
        }
        for ((basis, step), root) in bases.iter_mut().zip(steps).zip(&self.roots) {
            *basis += step * faer::Scale(BEYOND * gain / energy);
            *basis = whiten(basis, root)?;
        }
        Ok(true)
    }
}

/// The Gram with as much on its diagonal as makes it positive definite, rounded as it is.
fn definite(gram: Gram<'_>) -> Result<Mat<f64>, MethodError> {
    let mean = gram.mean_square();
    // A layer that no token reached: all directions alike.
    let mut damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
    loop {
        let mut damped = widen_transposed(gram.values, gram.n, gram.n);
        (0..gram.n).for_each(|i| damped[(i, i)] += damping);
        if cholesky(damped.clone()).is_some() {
            return Ok(damped);
        }
        if damping > mean {
            return Err(MethodError::NoConvergence);
        }
        damping *= 10.0;
    }
}

/// The same directions, of a second moment of one: B·R⁻¹ with BᵀCB = RᵀR.
fn whiten(basis: &Mat<f64>, root: &Mat<f64>) -> Result<Mat<f64>, MethodError> {
    let seen = product(root.transpose(), basis.as_ref());
    let moment = product(seen.transpose(), seen.as_ref());
    let lower = cholesky(moment).ok_or(MethodError::NoConvergence)?;
    let mut transposed = basis.transpose().to_owned();
    solve_lower_triangular_in_place(lower.as_ref(), transposed.as_mut(), Par::Seq);
    Ok(transposed.transpose().to_owned())
}

fn inner(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> f64 {
    a.col_iter()
        .zip(b.col_iter())
        .map(|(a, b)| a.iter().zip(b.iter()).map(|(a, b)| a * b).sum::<f64>())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::super::linear::product_f32;
    use super::super::sample::{correlated, distance, noise};
    use super::super::tensor::transpose;
    use super::*;

    const HEADS: usize = 4;
    const LENGTH: usize = 8;
    const N: usize = HEADS * LENGTH;
    const ROWS: usize = 24;

    fn pairs() -> ValueHeads {
        ValueHeads {
            length: LENGTH,
            shared_by: 2,
            kept: vec![0, 1],
        }
    }

    #[test]
    fn directions_that_values_never_take_go_at_no_cost() {
        // Values of both heads lie in five dimensions.
        let (free, tokens) = (5, 400);
        let bases = [noise(free * LENGTH, 1), noise(free * LENGTH, 2)];
        let mut x = vec![0f32; tokens * N];
        for query in 0..HEADS {
            let z = noise(tokens * free, 10 + query as u64);
            let head = product_f32(&z, &bases[query / 2], tokens, free, LENGTH);
            for (row, values) in x.chunks_mut(N).zip(head.chunks(LENGTH)) {
                row[query * LENGTH..][..LENGTH].copy_from_slice(values);
            }
        }
        let gram: Vec<f32> = product_f32(&transpose(&x, tokens, N), &x, N, tokens, N);
        let gram: Vec<f32> = gram.iter().map(|v| v / tokens as f32).collect();
        let gram = Gram::new(&gram, N).unwrap();
        let w = noise(ROWS * N, 3);
        let p = reduce(&w, ROWS, gram, &pairs(), free).unwrap();
        let fitted = refit(&w, ROWS, gram, &p).unwrap();
        let before = product_f32(&x, &transpose(&w, ROWS, N), tokens, N, ROWS);
        let narrow = p.narrow(&x, N);
        let width = p.width();
        let after = product_f32(
            &narrow,
            &transpose(&fitted, ROWS, width),
            tokens,
            width,
            ROWS,
        );
        assert_eq!(width, HEADS * free);
        assert!(
            distance(&before, &after) < 1e-3,
            "{}",
            distance(&before, &after)
        );
        // The same read through all inputs.
        let wide = product_f32(
            &x,
            &transpose(&p.widen(&fitted, N), ROWS, N),
            tokens,
            N,
            ROWS,
        );
        assert!(distance(&after, &wide) < 1e-5);
        // Values made in the basis are the inputs in it.
        let v = noise(2 * LENGTH * 3, 7);
        let made = p.values(&v, 3);
        let first: Vec<f32> = transpose(&v[..LENGTH * 3], LENGTH, 3);
        let mut row = vec![0f32; 3 * N];
        row.chunks_mut(N)
            .zip(first.chunks(LENGTH))
            .for_each(|(r, f)| r[..LENGTH].copy_from_slice(f));
        let expected: Vec<f32> = p
            .narrow(&row, N)
            .chunks(width)
            .flat_map(|r| r[..free].to_vec())
            .collect();
        assert!(distance(&transpose(&expected, 3, free), &made[..free * 3]) < 1e-5);
    }

    #[test]
    fn turns_with_the_fit_cost_less_than_the_leading_directions() {
        let gram = correlated(N, 600, 4);
        let gram = Gram::new(&gram, N).unwrap();
        let w = noise(ROWS * N, 5);
        let heads = pairs();
        let problem = Problem::new(&w, ROWS, gram, &heads).unwrap();
        let error = |bases: &[Mat<f64>]| {
            let map = problem.map(bases);
            let fitted = problem.fit(&map).unwrap();
            let rest = &problem.wt - product(map.as_ref(), fitted.as_ref());
            inner(
                rest.as_ref(),
                product(problem.gram.as_ref(), rest.as_ref()).as_ref(),
            )
        };
        let mut bases = problem.leading(5).unwrap();
        let first = error(&bases);
        let mut last = first;
        for _ in 0..ROUNDS {
            assert!(problem.step(&mut bases).unwrap());
            let now = error(&bases);
            assert!(now < last * 1.001, "{now} {last}");
            last = now;
        }
        assert!(last < 0.97 * first, "{first} {last}");
    }

    #[test]
    fn a_whole_length_is_exact_and_a_head_may_leave() {
        let gram = correlated(N, 600, 4);
        let gram = Gram::new(&gram, N).unwrap();
        let w = noise(ROWS * N, 5);
        let whole = reduce(&w, ROWS, gram, &pairs(), LENGTH).unwrap();
        let fitted = refit(&w, ROWS, gram, &whole).unwrap();
        assert!(distance(&w, &whole.widen(&fitted, N)) < 1e-3);
        let one = ValueHeads {
            kept: vec![1],
            ..pairs()
        };
        let part = reduce(&w, ROWS, gram, &one, 4).unwrap();
        let wide = part.widen(&refit(&w, ROWS, gram, &part).unwrap(), N);
        assert!(
            wide.chunks(N)
                .all(|r| r[..2 * LENGTH].iter().all(|v| *v == 0.0))
        );
        assert_eq!(
            reduce(&w, ROWS, gram, &one, 9).unwrap_err(),
            MethodError::Rank { rank: 9, limit: 8 }
        );
        let nothing = vec![0.0; N * N];
        let nothing = Gram::new(&nothing, N).unwrap();
        let p = reduce(&vec![0.0; ROWS * N], ROWS, nothing, &one, 4).unwrap();
        assert!(
            refit(&vec![0.0; ROWS * N], ROWS, nothing, &p)
                .unwrap()
                .iter()
                .all(|v| *v == 0.0)
        );
    }
}
