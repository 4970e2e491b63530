//! Columns of a matrix given up in an order that costs its output least, and the rest refitted: what
//! stands for W·X is W'·X_S, where S are the inputs that stay.
//!
//! With the inputs' Gram matrix G, the best W' is W·G_{:,S}·(G_{S,S})⁻¹, the Nyström approximation,
//! and its output error is that of the Schur complement. Inputs leave as in optimal brain surgeon
//! (Hassibi and Stork, 1993): with W refitted to those that are left, giving up the group g costs
//! trace(W_g·(G⁻¹_{g,g})⁻¹·W_gᵀ), and the cheapest goes. One sweep gives the cost of every width.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use super::error::{MethodError, check_weights};
use super::gram::Gram;
use super::linear::{cholesky, product, solve, widen_transposed};
use super::whitened::DAMPING;

/// Groups leave at least so many at a time as make about this many steps of a whole sweep.
const STEPS: usize = 192;

/// Groups that are looked at for each that leaves.
const POOL: usize = 4;

/// The order in which groups of inputs are given up.
#[derive(Debug, Clone, PartialEq)]
pub struct Elimination {
    /// Groups, the first to leave first.
    pub order: Vec<usize>,
    /// The output error after each has left: ‖W·X − W'·X_S‖² / tokens, W' refitted.
    pub errors: Vec<f64>,
}

/// Orders the inputs of W, `rows` rows as wide as the Gram, in groups of `group` neighbours, until
/// `most` groups have left.
///
/// # Errors
/// [`MethodError::Length`], [`MethodError::GramWidth`], values that are not finite;
/// [`MethodError::Setting`] where groups do not divide the width.
pub fn eliminate(
    w: &[f32],
    rows: usize,
    gram: Gram<'_>,
    group: usize,
    most: usize,
) -> Result<Elimination, MethodError> {
    let n = gram.n;
    check_weights(w, &[rows, n])?;
    gram.check(n)?;
    if group == 0 || !n.is_multiple_of(group) || most > n / group {
        return Err(MethodError::Setting {
            what: "the width of a group of inputs",
            value: group as f64,
        });
    }
    let mut sweep = Sweep::new(w, rows, gram, group)?;
    let at_once = (n / group / STEPS).max(1);
    let (mut order, mut errors) = (Vec::new(), Vec::new());
    let mut total = 0.0;
    while order.len() < most {
        let cheapest = sweep.cheapest(at_once.min(most - order.len()))?;
        let cost = sweep.give_up(&cheapest)?;
        for (i, leaving) in cheapest.iter().enumerate() {
            order.push(*leaving);
            errors.push(total + cost * (i + 1) as f64 / cheapest.len() as f64);
        }
        total += cost;
    }
    Ok(Elimination { order, errors })
}

/// W, refitted to the inputs that are left, and the inverse of their Gram.
struct Sweep {
    group: usize,
    w: Mat<f64>,
    inverse: Mat<f64>,
    left: Vec<bool>,
}

impl Sweep {
    fn new(w: &[f32], rows: usize, gram: Gram<'_>, group: usize) -> Result<Sweep, MethodError> {
        let n = gram.n;
        let all: Vec<usize> = (0..n).collect();
        let (l, _) = root(gram, &all)?;
        let mut inverse = Mat::identity(n, n);
        solve(&l, &mut inverse);
        Ok(Sweep {
            group,
            w: Mat::from_fn(rows, n, |i, j| f64::from(w[i * n + j])),
            inverse,
            left: vec![true; n / group],
        })
    }

    fn columns(&self, groups: &[usize]) -> Vec<usize> {
        let of = |g: &usize| g * self.group..(g + 1) * self.group;
        groups.iter().flat_map(of).collect()
    }

    /// W_g·(G⁻¹_{g,g})⁻¹ for some columns, and what giving them up costs.
    fn replacement(&self, columns: &[usize]) -> Result<(Mat<f64>, f64), MethodError> {
        let k = columns.len();
        let block = Mat::from_fn(k, k, |i, j| self.inverse[(columns[i], columns[j])]);
        let l = cholesky(block).ok_or(MethodError::NoConvergence)?;
        // Rows of the transpose are solved for: (G⁻¹_{g,g})⁻¹·W_gᵀ.
        let wg = Mat::from_fn(k, self.w.nrows(), |i, j| self.w[(j, columns[i])]);
        let mut solved = wg.clone();
        solve(&l, &mut solved);
        let cost = (0..wg.ncols())
            .map(|j| dot(wg.col_as_slice(j), solved.col_as_slice(j)))
            .sum();
        Ok((solved, cost))
    }

    /// The cheapest groups, each chosen as if those before it had left.
    fn cheapest(&self, count: usize) -> Result<Vec<usize>, MethodError> {
        let mut costs = Vec::new();
        for g in (0..self.left.len()).filter(|g| self.left[*g]) {
            let cost = if self.group == 1 {
                let w = self.w.col_as_slice(g);
                dot(w, w) / self.inverse[(g, g)]
            } else {
                self.replacement(&self.columns(&[g]))?.1
            };
            costs.push((cost, g));
        }
        costs.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        if count == 1 {
            return Ok(vec![costs[0].1]);
        }
        // Of two that say the same, both are cheap until one has left.
        let pool = costs.iter().take(POOL * count).map(|(_, g)| *g).collect();
        self.among(pool, count)
    }

    /// The cheapest single inputs of a few, one after another.
    fn among(&self, pool: Vec<usize>, count: usize) -> Result<Vec<usize>, MethodError> {
        let p = pool.len();
        let mut w = Mat::from_fn(self.w.nrows(), p, |i, j| self.w[(i, pool[j])]);
        let mut inverse = Mat::from_fn(p, p, |i, j| self.inverse[(pool[i], pool[j])]);
        let mut taken: Vec<usize> = Vec::new();
        while taken.len() < count.min(p) {
            let cost = |j: usize| dot(w.col_as_slice(j), w.col_as_slice(j)) / inverse[(j, j)];
            let left = (0..p).filter(|j| !taken.contains(j));
            let Some(j) = left.min_by(|a, b| cost(*a).total_cmp(&cost(*b))) else {
                break;
            };
            let scale = 1.0 / inverse[(j, j)];
            let (column, own) = (w.col(j).to_owned(), inverse.col(j).to_owned());
            for k in 0..p {
                let share = own[k] * scale;
                let rest = w.col_as_slice_mut(k).iter_mut().zip(column.iter());
                rest.for_each(|(w, c)| *w -= share * c);
                let rest = inverse.col_as_slice_mut(k).iter_mut().zip(own.iter());
                rest.for_each(|(v, c)| *v -= share * c);
            }
            taken.push(j);
        }
        Ok(taken.into_iter().map(|j| pool[j]).collect())
    }

    /// Removes groups, refits W to what is left, and says what that cost.
    fn give_up(&mut self, groups: &[usize]) -> Result<f64, MethodError> {
        let columns = self.columns(groups);
        let (solved, cost) = self.replacement(&columns)?;
        let (n, k) = (self.inverse.nrows(), columns.len());
        let leaving = Mat::from_fn(n, k, |i, j| self.inverse[(i, columns[j])]);
        subtract(&mut self.w, solved.transpose(), leaving.transpose());
        let block = Mat::from_fn(k, k, |i, j| self.inverse[(columns[i], columns[j])]);
        let l = cholesky(block).ok_or(MethodError::NoConvergence)?;
        let mut across = leaving.transpose().to_owned();
        solve(&l, &mut across);
        subtract(&mut self.inverse, leaving.as_ref(), across.as_ref());
        for &c in &columns {
            self.w.col_as_slice_mut(c).fill(0.0);
            self.inverse.col_as_slice_mut(c).fill(0.0);
            (0..n).for_each(|i| self.inverse[(c, i)] = 0.0);
            // What is not there any more costs nothing and touches nothing.
            self.inverse[(c, c)] = 1.0;
        }
        groups.iter().for_each(|g| self.left[*g] = false);
        Ok(cost.max(0.0))
    }
}

/// The Cholesky factor of the Gram of some inputs, and what had to be added to its diagonal, so that
/// rounding of its single precision does not count.
fn root(gram: Gram<'_>, inputs: &[usize]) -> Result<(Mat<f64>, f64), MethodError> {
    let mean = gram.mean_square();
    // A layer that no token reached: all columns alike.
    let mut damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
    loop {
        let damped = Mat::from_fn(inputs.len(), inputs.len(), |i, j| {
            let value = f64::from(gram.values[inputs[i] * gram.n + inputs[j]]);
            value + if i == j { damping } else { 0.0 }
        });
        if let Some(l) = cholesky(damped) {
            return Ok((l, damping));
        }
        if damping > mean {
            return Err(MethodError::NoConvergence);
        }
        damping *= 10.0;
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn subtract(from: &mut Mat<f64>, left: MatRef<'_, f64>, right: MatRef<'_, f64>) {
    matmul(from.as_mut(), Accum::Add, left, right, -1.0, Par::Seq);
}

/// W' for the inputs that stay: `rows` rows of `kept.len()` elements.
///
/// # Errors
/// As [`eliminate`].
pub fn refit(
    w: &[f32],
    rows: usize,
    gram: Gram<'_>,
    kept: &[usize],
) -> Result<Vec<f32>, MethodError> {
    let n = gram.n;
    check_weights(w, &[rows, n])?;
    gram.check(n)?;
    let g = |i: usize, j: usize| f64::from(gram.values[i * n + j]);
    let (l, damping) = root(gram, kept)?;
    // Columns are the rows of W': G_{S,S}·W'ᵀ = (G + damping)_{S,:}·Wᵀ.
    let across = Mat::from_fn(kept.len(), n, |i, j| {
        g(kept[i], j) + if kept[i] == j { damping } else { 0.0 }
    });
    let mut fitted = product(across.as_ref(), widen_transposed(w, rows, n).as_ref());
    solve(&l, &mut fitted);
    Ok((0..rows)
        .flat_map(|i| fitted.col_as_slice(i))
        .map(|v| *v as f32)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::super::linear::product_f32;
    use super::super::sample::{distance, noise};
    use super::super::tensor::transpose;
    use super::*;

    /// Inputs of n elements, of which only `free` are independent, and their Gram.
    fn redundant(n: usize, free: usize, seed: u64) -> (Vec<f32>, Vec<f32>) {
        let tokens = 600;
        let x = product_f32(
            &noise(tokens * free, seed),
            &noise(free * n, seed + 1),
            tokens,
            free,
            n,
        );
        let gram = product_f32(&transpose(&x, tokens, n), &x, n, tokens, n);
        (x, gram.iter().map(|v| v / tokens as f32).collect())
    }

    #[test]
    fn redundant_inputs_go_at_no_cost() {
        let (n, free, rows) = (24, 10, 7);
        let (x, gram) = redundant(n, free, 1);
        let gram = Gram::new(&gram, n).unwrap();
        let w = noise(rows * n, 5);
        let energy = gram.output_energy(&w, rows);
        let e = eliminate(&w, rows, gram, 1, n - 1).unwrap();
        assert!(e.errors[n - free - 1] < 3e-3 * energy, "{:?}", e.errors);
        assert!(e.errors[n - 2] > 0.1 * energy);
        assert!(e.errors.is_sorted());

        let mut kept: Vec<usize> = (0..n)
            .filter(|i| !e.order[..n - free].contains(i))
            .collect();
        kept.sort_unstable();
        let fitted = refit(&w, rows, gram, &kept).unwrap();
        let whole = product_f32(&x, &transpose(&w, rows, n), 600, n, rows);
        let picked: Vec<f32> = x
            .chunks(n)
            .flat_map(|r| kept.iter().map(|i| r[*i]))
            .collect();
        let wt = transpose(&fitted, rows, kept.len());
        let short = product_f32(&picked, &wt, 600, kept.len(), rows);
        assert!(
            distance(&whole, &short) < 5e-3,
            "{}",
            distance(&whole, &short)
        );
    }

    #[test]
    fn the_predicted_error_is_that_of_the_refit() {
        let (n, rows) = (20, 6);
        let (_, gram) = redundant(n, n, 3);
        let gram = Gram::new(&gram, n).unwrap();
        let w = noise(rows * n, 9);
        for group in [1, 4] {
            let e = eliminate(&w, rows, gram, group, 3).unwrap();
            let gone: Vec<usize> = e
                .order
                .iter()
                .flat_map(|g| g * group..(g + 1) * group)
                .collect();
            let kept: Vec<usize> = (0..n).filter(|i| !gone.contains(i)).collect();
            let fitted = refit(&w, rows, gram, &kept).unwrap();
            let mut full = vec![0.0; rows * n];
            for (row, short) in full.chunks_mut(n).zip(fitted.chunks(kept.len())) {
                kept.iter().zip(short).for_each(|(i, v)| row[*i] = *v);
            }
            let error = gram.output_error(&w, &full, rows);
            assert!(
                (error / e.errors[2] - 1.0).abs() < 0.02,
                "{error} {:?}",
                e.errors
            );
        }
    }

    #[test]
    fn an_input_of_nothing_and_bad_groups() {
        let zeros = vec![0.0; 16];
        let gram = Gram::new(&zeros, 4).unwrap();
        let w = noise(8, 1);
        assert_eq!(eliminate(&w, 2, gram, 2, 1).unwrap().order.len(), 1);
        assert_eq!(refit(&w, 2, gram, &[0, 1, 2, 3]).unwrap(), w);
        assert!(eliminate(&w, 2, gram, 3, 1).is_err());
        assert!(eliminate(&w, 2, gram, 2, 3).is_err());
    }
}
