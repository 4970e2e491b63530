//! Tucker decomposition of a tensor of three ways: a small core, and a matrix for each way
//! (Tucker, 1966). It starts from the truncated higher-order SVD (De Lathauwer, De Moor and
//! Vandewalle, 2000a) and is improved by orthogonal iteration (HOOI; the same, 2000b): each sweep
//! finds every way's best basis for the bases of the others, so that the error never increases.
//!
//! Tucker-2 leaves the first way alone (heads or layers share the bases of their outputs and inputs,
//! and have cores of their own). A plain matrix has no third way: for it this is
//! [`svd`](super::svd).

use faer::Mat;

use super::eigen::Eigen;
use super::error::{MethodError, check_rank};
use super::tensor::{Ranks, Tensor, grow_ranks, narrow_rows, rank_of_tail, tails};
use super::whitened::Whitening;

/// A sweep that takes less than this fraction off the squared error is the last one.
const LEAST_GAIN: f64 = 1e-6;

/// Which ways get a basis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// The second and the third; the core has the whole first way.
    Two,
    /// All.
    Three,
}

/// T ≈ core ×₀ U₀ ×₁ U₁ ×₂ U₂.
#[derive(Debug, Clone, PartialEq)]
pub struct Tucker {
    /// d₀, d₁, d₂.
    pub dims: [usize; 3],
    /// r₀, r₁, r₂.
    pub ranks: [usize; 3],
    /// r₀×r₁×r₂, the last index fastest.
    pub core: Vec<f32>,
    /// dₖ rows of rₖ elements; `None` where the core has the whole way.
    pub factors: [Option<Vec<f32>>; 3],
    /// The relative error, ‖T − T̂‖ / ‖T‖ (of the outputs, where whitened), at the start and after
    /// each sweep; descending.
    pub errors: Vec<f64>,
}

/// Parameters of a core and of the factors of ways that are not whole.
fn parameters(dims: [usize; 3], ranks: [usize; 3]) -> u64 {
    let factors: u64 = (0..3)
        .filter(|&k| ranks[k] < dims[k])
        .map(|k| dims[k] as u64 * ranks[k] as u64)
        .sum();
    ranks.iter().map(|r| *r as u64).product::<u64>() + factors
}

/// Decomposes a tensor of `dims`, the last index fastest, with at most `sweeps` sweeps. With a
/// whitening of the last way's inputs, the error that is made least is that of the outputs.
///
/// Fixed ranks above what the other ranks can use are lowered to it.
///
/// # Errors
/// [`MethodError::Length`], [`MethodError::WeightsNotFinite`], [`MethodError::GramWidth`],
/// [`MethodError::Rank`], [`MethodError::Setting`], [`MethodError::NoConvergence`];
/// [`MethodError::Budget`] for a keep below ranks of one.
pub fn decompose(
    t: &[f32],
    dims: [usize; 3],
    ways: Ways,
    ranks: Ranks<[usize; 3]>,
    whitening: Option<&Whitening<'_>>,
    sweeps: usize,
) -> Result<Tucker, MethodError> {
    ranks.check()?;
    let tensor = Tensor::new(t, dims, whitening)?;
    let modes: &[usize] = match ways {
        Ways::Two => &[1, 2],
        Ways::Three => &[0, 1, 2],
    };
    let eigens: Vec<Eigen> = modes
        .iter()
        .map(|&k| tensor.mode(k))
        .collect::<Result<_, _>>()?;
    let total = tensor.energy();
    let ranks = choose_ranks(dims, modes, &eigens, total, ranks)?;
    let mut bases: [Option<Mat<f64>>; 3] = [None, None, None];
    for (&k, eigen) in modes.iter().zip(&eigens) {
        if ranks[k] < dims[k] {
            bases[k] = Some(eigen.leading(ranks[k]));
        }
    }
    let (mut core, errors) = improve(&tensor, &mut bases, &ranks, sweeps)?;
    if let Some(whitening) = whitening {
        match &mut bases[2] {
            Some(basis) => *basis = whitening.unwhiten(basis.as_ref())?,
            None => core.replace_last(whitening.unwhiten(core.last_way())?),
        }
    }
    Ok(Tucker {
        dims,
        ranks,
        core: core.data.iter().map(|v| *v as f32).collect(),
        factors: bases.map(|basis| basis.map(|b| narrow_rows(b.as_ref()))),
        errors,
    })
}

/// Turns the bases in sweeps, each for what the others leave, until little is gained: the core, and the
/// error before the first sweep and after each.
fn improve(
    tensor: &Tensor,
    bases: &mut [Option<Mat<f64>>; 3],
    ranks: &[usize; 3],
    sweeps: usize,
) -> Result<(Tensor, Vec<f64>), MethodError> {
    let total = tensor.energy();
    let mut core = project(tensor, bases, None);
    let mut captured = core.energy();
    let mut errors = vec![relative(total, captured)];
    for _ in 0..sweeps {
        // One basis alone is already the best.
        if bases.iter().flatten().count() < 2 {
            break;
        }
        let mut next = bases.clone();
        for k in 0..3 {
            if next[k].is_some() {
                let eigen = project(tensor, &next, Some(k)).mode(k)?;
                next[k] = Some(eigen.leading(ranks[k]));
            }
        }
        let next_core = project(tensor, &next, None);
        let gain = next_core.energy() - captured;
        if gain <= 0.0 {
            break;
        }
        let enough = gain < LEAST_GAIN * (total - captured);
        (*bases, core, captured) = (next, next_core, captured + gain);
        errors.push(relative(total, captured));
        if enough {
            break;
        }
    }
    Ok((core, errors))
}

impl Tucker {
    /// The numbers that it stores.
    pub fn parameters(&self) -> u64 {
        parameters(self.dims, self.ranks)
    }

    /// The tensor that it stands for.
    pub fn multiply_out(&self) -> Vec<f32> {
        let mut tensor = Tensor {
            dims: self.ranks,
            data: self.core.iter().map(|v| f64::from(*v)).collect(),
        };
        for (k, factor) in self.factors.iter().enumerate() {
            if let Some(factor) = factor {
                let (d, r) = (self.dims[k], self.ranks[k]);
                let transposed = Mat::from_fn(r, d, |i, j| f64::from(factor[j * r + i]));
                tensor = tensor.contract(k, transposed.as_ref());
            }
        }
        tensor.data.iter().map(|v| *v as f32).collect()
    }
}

/// The tensor in the bases, without that of one way.
fn project(tensor: &Tensor, bases: &[Option<Mat<f64>>; 3], without: Option<usize>) -> Tensor {
    let mut ways: Vec<(usize, &Mat<f64>)> = bases
        .iter()
        .enumerate()
        .filter(|(k, _)| Some(*k) != without)
        .filter_map(|(k, basis)| Some((k, basis.as_ref()?)))
        .collect();
    // What shrinks most goes first, and makes the others cheaper.
    ways.sort_by(|(j, a), (k, b)| {
        let shrinks = |m: &Mat<f64>| m.ncols() as f64 / m.nrows() as f64;
        shrinks(a).total_cmp(&shrinks(b)).then(j.cmp(k))
    });
    let mut out: Option<Tensor> = None;
    for (k, basis) in ways {
        out = Some(out.as_ref().unwrap_or(tensor).contract(k, basis.as_ref()));
    }
    out.unwrap_or_else(|| Tensor {
        dims: tensor.dims,
        data: tensor.data.clone(),
    })
}

fn relative(total: f64, captured: f64) -> f64 {
    if total > 0.0 {
        ((total - captured).max(0.0) / total).sqrt()
    } else {
        0.0
    }
}

fn choose_ranks(
    dims: [usize; 3],
    modes: &[usize],
    eigens: &[Eigen],
    total: f64,
    ranks: Ranks<[usize; 3]>,
) -> Result<[usize; 3], MethodError> {
    let tails: Vec<Vec<f64>> = eigens.iter().map(|e| tails(&e.values)).collect();
    let ways = match modes.len() {
        3 => Ways::Three,
        _ => Ways::Two,
    };
    let whole = |of_modes: &[usize]| {
        let mut ranks = dims;
        modes.iter().zip(of_modes).for_each(|(&k, r)| ranks[k] = *r);
        ranks
    };
    let chosen = match ranks {
        Ranks::Fixed(ranks) => {
            for (rank, limit) in ranks.into_iter().zip(dims) {
                check_rank(rank, limit)?;
            }
            whole(&modes.iter().map(|&k| ranks[k]).collect::<Vec<_>>())
        }
        Ranks::Tolerance(tolerance) => {
            // Truncation in each way adds at most its own tail to the squared error.
            let limit = tolerance * tolerance * total / modes.len() as f64;
            whole(
                &tails
                    .iter()
                    .map(|t| rank_of_tail(t, limit))
                    .collect::<Vec<_>>(),
            )
        }
        Ranks::Keep(keep) => {
            let all: f64 = dims.iter().map(|d| *d as f64).product();
            let budget = (keep * all) as u64;
            let least = vec![1; modes.len()];
            // A rank that the others can't use is lowered, and a whole way has no factor: so what
            // counts is what the usable ranks cost.
            let cost = |ranks: &[usize]| parameters(dims, usable_ranks(dims, ways, whole(ranks)));
            let needed = cost(&least);
            if needed > budget {
                return Err(MethodError::Budget { budget, needed });
            }
            whole(&grow_ranks(&tails, least, |ranks| cost(ranks) <= budget))
        }
    };
    Ok(usable_ranks(dims, ways, chosen))
}

/// Ranks lowered to what the others can use: a way has no more dimensions than the others together
/// can tell apart.
pub fn usable_ranks(dims: [usize; 3], ways: Ways, mut ranks: [usize; 3]) -> [usize; 3] {
    let first = match ways {
        Ways::Two => 1,
        Ways::Three => 0,
    };
    for k in first..3 {
        let others: usize = (0..3).filter(|&j| j != k).map(|j| ranks[j]).product();
        ranks[k] = ranks[k].min(others).min(dims[k]);
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::super::gram::Gram;
    use super::super::sample::{correlated, distance, noise};
    use super::*;
    use proptest::prelude::*;

    fn exact(dims: [usize; 3], ranks: [usize; 3], seed: u64) -> Vec<f32> {
        let factor = |k: usize| Some(noise(dims[k] * ranks[k], seed + k as u64));
        Tucker {
            dims,
            ranks,
            core: noise(ranks.iter().product(), seed + 9),
            factors: [factor(0), factor(1), factor(2)],
            errors: Vec::new(),
        }
        .multiply_out()
    }

    #[test]
    fn exact_multilinear_ranks_are_found_and_recovered() {
        let (dims, ranks) = ([6, 20, 15], [3, 5, 4]);
        let t = exact(dims, ranks, 1);
        let g = correlated(15, 60, 2);
        let whitening = Whitening::new(Gram::new(&g, 15).unwrap(), 1e-6).unwrap();
        for whitening in [None, Some(&whitening)] {
            for (ways, expected) in [(Ways::Three, ranks), (Ways::Two, [6, 5, 4])] {
                for wish in [Ranks::Fixed(ranks), Ranks::Tolerance(1e-6)] {
                    let got = decompose(&t, dims, ways, wish, whitening, 5).unwrap();
                    assert_eq!(got.ranks, expected);
                    assert!(distance(&t, &got.multiply_out()) < 1e-5);
                    let stored =
                        got.core.len() + got.factors.iter().flatten().map(Vec::len).sum::<usize>();
                    assert_eq!(got.parameters(), stored as u64);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn errors_never_increase_and_keep_within_their_bounds(
            d0 in 1usize..6, d1 in 2usize..12, d2 in 2usize..12, keep in 0.5f64..1.0,
            seed in any::<u64>(),
        ) {
            let dims = [d0, d1, d2];
            let t = noise(d0 * d1 * d2, seed);
            for ways in [Ways::Two, Ways::Three] {
                let got = decompose(&t, dims, ways, Ranks::Tolerance(0.4), None, 10).unwrap();
                prop_assert!(got.errors[0] <= 0.4 + 1e-9);
                prop_assert!(got.errors.windows(2).all(|e| e[1] <= e[0]));
                let last = got.errors[got.errors.len() - 1];
                prop_assert!((distance(&t, &got.multiply_out()) - last).abs() < 1e-5);
                match decompose(&t, dims, ways, Ranks::Keep(keep), None, 10) {
                    Ok(got) => prop_assert!(got.parameters() as f64 <= keep * t.len() as f64),
                    Err(e) => {
                        let too_small = matches!(e, MethodError::Budget { .. });
                        prop_assert!(too_small);
                    }
                }
                let full = decompose(&t, dims, ways, Ranks::Tolerance(0.0), None, 2).unwrap();
                prop_assert!(distance(&t, &full.multiply_out()) < 1e-5);
            }
        }
    }

    #[test]
    fn whitening_makes_the_outputs_nearer() {
        let dims = [4, 12, 16];
        let t = noise(4 * 12 * 16, 5);
        let g = correlated(16, 64, 6);
        let gram = Gram::new(&g, 16).unwrap();
        let whitening = Whitening::new(gram, 1e-6).unwrap();
        let error = |whitening| {
            let ranks = Ranks::Fixed([3, 6, 6]);
            let got = decompose(&t, dims, Ways::Three, ranks, whitening, 10).unwrap();
            let error = gram.output_error(&t, &got.multiply_out(), 4 * 12);
            (got, (error / gram.output_energy(&t, 4 * 12)).sqrt())
        };
        let (got, whitened) = error(Some(&whitening));
        assert!(whitened < error(None).1);
        assert!((whitened - got.errors[got.errors.len() - 1]).abs() < 1e-4);
    }

    #[test]
    fn zeros_and_what_cannot_be() {
        let zeros = [0.0; 24];
        let of = |t: &[f32], ranks| decompose(t, [2, 3, 4], Ways::Three, ranks, None, 3);
        let got = of(&zeros, Ranks::Tolerance(0.1)).unwrap();
        assert_eq!((got.ranks, got.multiply_out()), ([1, 1, 1], zeros.to_vec()));
        assert_eq!(
            of(&[f32::NAN; 24], Ranks::Keep(0.5)),
            Err(MethodError::WeightsNotFinite)
        );
        assert!(matches!(
            of(&zeros, Ranks::Keep(0.1)),
            Err(MethodError::Budget { .. })
        ));
        assert!(matches!(
            of(&zeros, Ranks::Fixed([3, 1, 1])),
            Err(MethodError::Rank { .. })
        ));
        assert!(matches!(
            of(&zeros, Ranks::Keep(f64::NAN)),
            Err(MethodError::Setting { .. })
        ));
        let empty = decompose(&[], [0, 3, 4], Ways::Two, Ranks::Keep(0.5), None, 3);
        assert!(matches!(empty, Err(MethodError::Setting { .. })));
    }
}
