//! CP decomposition (canonical polyadic, CANDECOMP/PARAFAC) of a tensor of three ways: a sum of R
//! outer products (Carroll and Chang, 1970; Harshman, 1970), by alternating least squares.
//!
//! Each step is regularised towards the factor that it replaces (Li, Kindermann and Navasca, 2013):
//! unlike a penalty on size, that keeps the error from ever increasing, and it does not bias the
//! result. Plain alternation creeps where factors are nearly parallel; after each sweep all factors
//! are tried further along the way they moved (Harshman's extrapolation), and kept if that is
//! better. There is no best start: the first one has the leading vectors of each way, further ones
//! are noise of fixed seeds, and the best end is the result.
//!
//! A plain matrix has no third way: for it this is [`svd`](super::svd).

use faer::linalg::triangular_solve::{
    solve_lower_triangular_in_place, solve_upper_triangular_in_place,
};
use faer::{Mat, MatRef, Par};
use rand::{RngExt, SeedableRng};

use super::error::{MethodError, check_rank};
use super::linear::{cholesky, product};
use super::tensor::{Ranks, Tensor, narrow_rows};
use super::whitened::Whitening;

/// The first restart of noise has this seed, the next the one after it.
const FIRST_SEED: u64 = 0x6477_696e_646c_6501;

/// Regularisation falls by this from sweep to sweep, down to [`LEAST_REGULARISATION`].
const DECAY: f64 = 0.7;

/// Regularisation that only keeps the normal equations solvable.
const LEAST_REGULARISATION: f64 = 1e-12;

/// Sweeps before extrapolation begins.
const CALM_SWEEPS: usize = 4;

/// Squared relative errors below this are rounding.
const NOISE: f64 = 1e-15;

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Sweeps over the three factors, at most.
    pub sweeps: usize,
    /// Starts, at least one: the first from the leading vectors, the others from noise.
    pub starts: usize,
    /// How strongly the first sweep holds to the factors it had, relative to the normal equations.
    pub regularisation: f64,
    /// Converged is what a sweep improves by less than this fraction of its squared error.
    pub least_gain: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sweeps: 500,
            starts: 3,
            regularisation: 1e-3,
            least_gain: 1e-6,
        }
    }
}

/// T_ijk ≈ Σ_r a_ir · b_jr · c_kr.
#[derive(Debug, Clone, PartialEq)]
pub struct Cp {
    /// d₀, d₁, d₂.
    pub dims: [usize; 3],
    /// The number of outer products.
    pub rank: usize,
    /// A, B and C: dₖ rows of R elements, the columns of a product of equal norms.
    pub factors: [Vec<f32>; 3],
    /// How each start went; the factors are those of the least error.
    pub starts: Vec<Start>,
    /// Which one that was.
    pub best: usize,
}

/// How one start went.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// The seed of its noise; `None` for the leading vectors.
    pub seed: Option<u64>,
    /// The relative error, ‖T − T̂‖ / ‖T‖ (of the outputs, where whitened), after each sweep;
    /// descending.
    pub errors: Vec<f64>,
    /// Whether it ended because nothing was gained any more, and not for want of sweeps.
    pub converged: bool,
}

impl Start {
    /// The relative error at its end.
    pub fn error(&self) -> f64 {
        self.errors.last().copied().unwrap_or(f64::INFINITY)
    }
}

/// The rank that keeps at most a fraction of the parameters.
pub fn rank_of_keep(dims: [usize; 3], keep: f64) -> usize {
    let all: f64 = dims.iter().map(|d| *d as f64).product();
    let each: f64 = dims.iter().map(|d| *d as f64).sum();
    (keep * all / each) as usize
}

/// More outer products than the two smaller ways have fibres are never needed.
pub fn most_ranks([d0, d1, d2]: [usize; 3]) -> usize {
    (d0 * d1).min(d0 * d2).min(d1 * d2)
}

/// Decomposes a tensor of `dims`, the last index fastest. With a whitening of the last way's
/// inputs, the error that is made least is that of the outputs.
///
/// A tolerance is met by doubling the rank until it holds, then halving the interval; where no rank
/// up to that of all parameters meets it, the result is that of the highest rank tried.
///
/// # Errors
/// [`MethodError::Length`], [`MethodError::WeightsNotFinite`], [`MethodError::GramWidth`],
/// [`MethodError::Rank`], [`MethodError::Setting`], [`MethodError::NoConvergence`].
pub fn decompose(
    t: &[f32],
    dims: [usize; 3],
    rank: Ranks<usize>,
    whitening: Option<&Whitening<'_>>,
    settings: &Settings,
) -> Result<Cp, MethodError> {
    rank.check()?;
    let tensor = Tensor::new(t, dims, whitening)?;
    let limit = most_ranks(dims);
    let of = |rank| of_rank(&tensor, rank, whitening, settings);
    match rank {
        Ranks::Fixed(rank) => {
            check_rank(rank, limit)?;
            of(rank)
        }
        Ranks::Keep(keep) => {
            let rank = rank_of_keep(dims, keep).min(limit);
            check_rank(rank, limit)?;
            of(rank)
        }
        Ranks::Tolerance(tolerance) => {
            let holds = |cp: &Cp| cp.starts[cp.best].error() <= tolerance;
            let (mut below, mut rank) = (0, 1);
            let mut found = of(rank)?;
            while !holds(&found) && rank < limit {
                below = rank;
                rank = (2 * rank).min(limit);
                found = of(rank)?;
            }
            while rank - below > 1 && holds(&found) {
                let middle = below + (rank - below) / 2;
                let tried = of(middle)?;
                if holds(&tried) {
                    (rank, found) = (middle, tried);
                } else {
                    below = middle;
                }
            }
            Ok(found)
        }
    }
}

fn of_rank(
    tensor: &Tensor,
    rank: usize,
    whitening: Option<&Whitening<'_>>,
    settings: &Settings,
) -> Result<Cp, MethodError> {
    let mut best: Option<(usize, [Mat<f64>; 3])> = None;
    let mut starts: Vec<Start> = Vec::new();
    for start in 0..settings.starts.max(1) {
        let seed = (start > 0).then(|| FIRST_SEED + start as u64);
        let (factors, start) = alternate(tensor, rank, seed, settings)?;
        starts.push(start);
        let last = starts.len() - 1;
        let better = |best: usize| starts[last].error() < starts[best].error();
        if best.as_ref().is_none_or(|(best, _)| better(*best)) {
            best = Some((last, factors));
        }
        if starts[last].error().powi(2) <= NOISE {
            break;
        }
    }
    let Some((best, mut factors)) = best else {
        return Err(MethodError::NoConvergence);
    };
    if let Some(whitening) = whitening {
        factors[2] = whitening.unwhiten(factors[2].as_ref())?;
    }
    balance(&mut factors);
    Ok(Cp {
        dims: tensor.dims,
        rank,
        factors: factors.map(|f| narrow_rows(f.as_ref())),
        starts,
        best,
    })
}

impl Cp {
    /// The numbers that it stores.
    pub fn parameters(&self) -> u64 {
        self.dims.iter().map(|d| *d as u64 * self.rank as u64).sum()
    }

    /// The tensor that it stands for.
    pub fn multiply_out(&self) -> Vec<f32> {
        let [d0, d1, d2] = self.dims;
        let wide = |k: usize| {
            Mat::from_fn(self.dims[k], self.rank, |i, r| {
                f64::from(self.factors[k][i * self.rank + r])
            })
        };
        let (a, b, c) = (wide(0), wide(1), wide(2));
        let mut out = Vec::with_capacity(d0 * d1 * d2);
        for i in 0..d0 {
            let scaled = Mat::from_fn(d1, self.rank, |j, r| a[(i, r)] * b[(j, r)]);
            // Columns of the transpose are rows.
            let slice = product(c.as_ref(), scaled.transpose());
            out.extend(
                slice
                    .col_iter()
                    .flat_map(|col| col.iter().map(|v| *v as f32)),
            );
        }
        out
    }
}

/// Runs one start to its end.
fn alternate(
    tensor: &Tensor,
    rank: usize,
    seed: Option<u64>,
    settings: &Settings,
) -> Result<([Mat<f64>; 3], Start), MethodError> {
    let total = tensor.energy();
    let mut factors = initial(tensor, rank, seed)?;
    let mut start = Start {
        seed,
        errors: Vec::new(),
        converged: false,
    };
    if total == 0.0 {
        factors = factors.map(|f| Mat::zeros(f.nrows(), f.ncols()));
        (start.errors, start.converged) = (vec![0.0], true);
        return Ok((factors, start));
    }
    let mut regularisation = settings.regularisation;
    let mut last = f64::INFINITY;
    for sweep in 0..settings.sweeps.max(1) {
        let before = factors.clone();
        let over_last = tensor.contract(2, factors[2].as_ref());
        for k in [0, 1] {
            let m = gather(&over_last, k, factors[1 - k].as_ref());
            solve(&mut factors, k, &m, regularisation)?;
        }
        let m = over_first_two(tensor, &factors);
        solve(&mut factors, 2, &m, regularisation)?;
        let mut error = squared_error(total, &factors, &m);
        if sweep >= CALM_SWEEPS {
            let step = (sweep as f64).cbrt();
            let further: [Mat<f64>; 3] = std::array::from_fn(|k| {
                &factors[k] + (&factors[k] - &before[k]) * faer::Scale(step)
            });
            let m = over_first_two(tensor, &further);
            let there = squared_error(total, &further, &m);
            if there < error {
                (factors, error) = (further, there);
            }
        }
        regularisation = (regularisation * DECAY).max(LEAST_REGULARISATION);
        // Rounding, when there is nothing left to gain.
        if error > last {
            (factors, start.converged) = (before, true);
            break;
        }
        start.errors.push(error.sqrt());
        if error <= NOISE || last - error < settings.least_gain * error {
            start.converged = true;
            break;
        }
        last = error;
        balance(&mut factors);
    }
    Ok((factors, start))
}

/// Leading vectors of each way, and noise where the rank is above its length; or noise alone.
fn initial(tensor: &Tensor, rank: usize, seed: Option<u64>) -> Result<[Mat<f64>; 3], MethodError> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed.unwrap_or(FIRST_SEED));
    let mut factors = [Mat::new(), Mat::new(), Mat::new()];
    for (k, factor) in factors.iter_mut().enumerate() {
        let d = tensor.dims[k];
        *factor = Mat::from_fn(d, rank, |_, _| rng.random::<f64>() - 0.5);
        if seed.is_none() {
            let leading = rank.min(d);
            let vectors = tensor.mode(k)?.leading(leading);
            let mut to = factor.as_mut().subcols_mut(0, leading);
            to.copy_from(&vectors);
        }
    }
    Ok(factors)
}

/// Σ over the other of the first two ways of T·C with its factor: dₖ×R. `over_last` is T ×₂ Cᵀ.
fn gather(over_last: &Tensor, k: usize, other: MatRef<'_, f64>) -> Mat<f64> {
    let [d0, d1, rank] = over_last.dims;
    // Transposed, so that what is summed is contiguous.
    let mut out = Mat::<f64>::zeros(rank, over_last.dims[k]);
    let other = other.transpose().to_owned();
    for (i, matrix) in over_last.data.chunks_exact(d1 * rank).enumerate().take(d0) {
        for (j, fibre) in matrix.chunks_exact(rank).enumerate() {
            let (to, with) = if k == 0 { (i, j) } else { (j, i) };
            let with = other.col_as_slice(with);
            let to = out.col_as_slice_mut(to).iter_mut();
            to.zip(fibre.iter().zip(with))
                .for_each(|(to, (x, y))| *to += x * y);
        }
    }
    out.transpose().to_owned()
}

/// Σ over the first two ways of T with A and B: d₂×R.
fn over_first_two(tensor: &Tensor, factors: &[Mat<f64>; 3]) -> Mat<f64> {
    let [d0, _, d2] = tensor.dims;
    let rank = factors[0].ncols();
    let over = tensor.contract(1, factors[1].as_ref());
    let mut out = Mat::<f64>::zeros(d2, rank);
    for (i, matrix) in over.data.chunks_exact(rank * d2).enumerate().take(d0) {
        for (r, fibre) in matrix.chunks_exact(d2).enumerate() {
            let a = factors[0][(i, r)];
            let to = out.col_as_slice_mut(r).iter_mut();
            to.zip(fibre).for_each(|(to, x)| *to += a * x);
        }
    }
    out
}

/// The element-wise product of the Grams of the factors, without one.
fn normal(factors: &[Mat<f64>; 3], without: Option<usize>) -> Mat<f64> {
    let rank = factors[0].ncols();
    let mut out = Mat::from_fn(rank, rank, |_, _| 1.0);
    for (k, f) in factors.iter().enumerate() {
        if Some(k) != without {
            let gram = product(f.transpose(), f.as_ref());
            for j in 0..rank {
                let of = gram.col_as_slice(j);
                out.col_as_slice_mut(j)
                    .iter_mut()
                    .zip(of)
                    .for_each(|(o, g)| *o *= g);
            }
        }
    }
    out
}

/// Replaces factor `k` by (M + μ·Aₖ)·(Γ + μ)⁻¹, with μ relative to Γ's mean diagonal.
fn solve(
    factors: &mut [Mat<f64>; 3],
    k: usize,
    m: &Mat<f64>,
    regularisation: f64,
) -> Result<(), MethodError> {
    let gamma = normal(factors, Some(k));
    let rank = gamma.nrows();
    let mean = (0..rank).map(|r| gamma[(r, r)]).sum::<f64>() / rank as f64;
    let mut mu = regularisation.max(LEAST_REGULARISATION) * mean.max(f64::MIN_POSITIVE);
    // Each failure makes it ten times stronger; at the strength of Γ itself it cannot fail.
    while mu.is_finite() {
        let mut damped = gamma.clone();
        (0..rank).for_each(|r| damped[(r, r)] += mu);
        if let Some(l) = cholesky(damped) {
            let old = &factors[k];
            let mut x = Mat::from_fn(rank, old.nrows(), |r, i| m[(i, r)] + mu * old[(i, r)]);
            solve_lower_triangular_in_place(l.as_ref(), x.as_mut(), Par::Seq);
            solve_upper_triangular_in_place(l.transpose(), x.as_mut(), Par::Seq);
            factors[k] = x.transpose().to_owned();
            return Ok(());
        }
        mu *= 10.0;
    }
    Err(MethodError::NoConvergence)
}

/// ‖T − T̂‖² / ‖T‖² from M of the last way.
fn squared_error(total: f64, factors: &[Mat<f64>; 3], m: &Mat<f64>) -> f64 {
    let dot = |a: &Mat<f64>, b: &Mat<f64>| -> f64 {
        let columns = a.col_iter().zip(b.col_iter());
        columns
            .map(|(a, b)| a.iter().zip(b.iter()).map(|(x, y)| x * y).sum::<f64>())
            .sum()
    };
    let size = normal(factors, None);
    let size: f64 = size.col_iter().map(|c| c.iter().sum::<f64>()).sum();
    ((total - 2.0 * dot(&factors[2], m) + size) / total).max(0.0)
}

/// Gives the three columns of each product the same norm.
fn balance(factors: &mut [Mat<f64>; 3]) {
    for r in 0..factors[0].ncols() {
        let norms: [f64; 3] = std::array::from_fn(|k| factors[k].col(r).norm_l2());
        let mean = norms.iter().product::<f64>().cbrt();
        for (factor, norm) in factors.iter_mut().zip(norms) {
            let scale = if norm > 0.0 { mean / norm } else { 0.0 };
            factor
                .col_as_slice_mut(r)
                .iter_mut()
                .for_each(|v| *v *= scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gram::Gram;
    use super::super::sample::{correlated, distance, noise};
    use super::*;
    use proptest::prelude::*;

    fn exact(dims: [usize; 3], rank: usize, seed: u64) -> Vec<f32> {
        let factors = std::array::from_fn(|k| noise(dims[k] * rank, seed + k as u64));
        let (starts, best) = (Vec::new(), 0);
        Cp {
            dims,
            rank,
            factors,
            starts,
            best,
        }
        .multiply_out()
    }

    #[test]
    fn tensors_of_exact_rank_are_recovered() {
        let dims = [6, 14, 11];
        let g = correlated(11, 44, 2);
        let whitening = Whitening::new(Gram::new(&g, 11).unwrap(), 1e-6).unwrap();
        for seed in 0..8 {
            let t = exact(dims, 4, 10 * seed);
            for whitening in [None, Some(&whitening)] {
                for rank in [Ranks::Fixed(4), Ranks::Tolerance(1e-5)] {
                    let got = decompose(&t, dims, rank, whitening, &Settings::default()).unwrap();
                    let error = distance(&t, &got.multiply_out());
                    assert!(error < 1e-5, "{seed} {error} {:?}", got.starts);
                    assert_eq!((got.rank, got.parameters()), (4, 4 * 31));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn errors_never_increase_and_are_those_of_the_factors(
            d0 in 1usize..6, d1 in 2usize..10, d2 in 2usize..10, seed in any::<u64>(),
        ) {
            let dims = [d0, d1, d2];
            let t = noise(d0 * d1 * d2, seed);
            let settings = Settings { sweeps: 40, ..Settings::default() };
            let rank = rank_of_keep(dims, 0.7).clamp(1, (d0 * d1).min(d0 * d2));
            let got = decompose(&t, dims, Ranks::Fixed(rank), None, &settings).unwrap();
            for start in &got.starts {
                prop_assert!(start.errors.windows(2).all(|e| e[1] <= e[0]));
                prop_assert!(start.error() >= got.starts[got.best].error());
            }
            let error = distance(&t, &got.multiply_out());
            prop_assert!((error - got.starts[got.best].error()).abs() < 1e-4);
            prop_assert_eq!(&got, &decompose(&t, dims, Ranks::Fixed(rank), None, &settings).unwrap());
        }
    }

    #[test]
    fn zeros_and_what_cannot_be() {
        let of = |t: &[f32], rank| decompose(t, [2, 3, 4], rank, None, &Settings::default());
        let zeros = [0.0; 24];
        assert_eq!(of(&zeros, Ranks::Fixed(2)).unwrap().multiply_out(), zeros);
        assert_eq!(
            of(&[f32::NAN; 24], Ranks::Fixed(1)),
            Err(MethodError::WeightsNotFinite)
        );
        assert_eq!(
            of(&zeros, Ranks::Fixed(7)),
            Err(MethodError::Rank { rank: 7, limit: 6 })
        );
        assert_eq!(
            of(&zeros, Ranks::Keep(0.1)),
            Err(MethodError::Rank { rank: 0, limit: 6 })
        );
        // Two products of equal strength that nearly cancel: every system is singular.
        assert!(of(&[1.0; 24], Ranks::Fixed(6)).is_ok());
    }
}
