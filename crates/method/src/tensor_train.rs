//! Tensor trains: a tensor of any number of ways as a chain of cores, one for each way (TT-SVD;
//! Oseledets, 2011), and a matrix as an operator of such cores (MPO), whose rows and columns are
//! counted by several indices each (Novikov and others, 2015).
//!
//! Cutting each unfolding of the tensor to a rank loses at most the sum of what the unfoldings lose
//! (squared), so the ranks come from the spectra of the unfoldings before anything is computed: the
//! smallest that keep a tolerance, or those that lose least for a number of parameters.
//!
//! Where the last way is the inputs, a Gram can whiten it. An operator's inputs are spread over its
//! cores; it is made without.

use faer::MatRef;

use super::eigen::{Eigen, eigenvalues};
use super::error::{MethodError, check_rank, check_weights};
use super::linear::{lower_product, product};
use super::tensor::{Ranks, columns, grow_ranks, narrow_rows, rank_of_tail, tails};
use super::whitened::Whitening;

/// Singular values below this fraction of the largest are rounding of the squares they come from.
const NOISE: f64 = 1e-8;

/// `T_{i₁…i_d} ≈ G₁[i₁]·G₂[i₂]·…·G_d[i_d]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Train {
    /// n₁ … n_d.
    pub dims: Vec<usize>,
    /// r₁ … r_{d−1}; those of both ends are one.
    pub ranks: Vec<usize>,
    /// Core k has r_{k−1}×n_k×r_k elements, the last index fastest.
    pub cores: Vec<Vec<f32>>,
}

/// A matrix of M₁·…·M_d rows and N₁·…·N_d columns as an operator: way k of the train has
/// n_k = M_k·N_k, of row index i_k and column index j_k, the latter fastest. The first index of
/// rows, and of columns, is the slowest.
#[derive(Debug, Clone, PartialEq)]
pub struct Operator {
    /// M₁ … M_d.
    pub rows: Vec<usize>,
    /// N₁ … N_d.
    pub cols: Vec<usize>,
    /// The cores.
    pub train: Train,
}

fn parameters(dims: &[usize], ranks: &[usize]) -> u64 {
    let rank = |k: usize| ranks.get(k).map_or(1, |r| *r as u64);
    (0..dims.len())
        .map(|k| k.checked_sub(1).map_or(1, rank) * dims[k] as u64 * rank(k))
        .sum()
}

/// Decomposes a tensor of `dims`, the last index fastest; with a whitening of the last way's
/// inputs, the error that is bounded is that of the outputs.
///
/// Fixed ranks above what the ways before or behind can tell apart are lowered to that.
///
/// # Errors
/// [`MethodError::Length`], [`MethodError::WeightsNotFinite`], [`MethodError::GramWidth`],
/// [`MethodError::Rank`], [`MethodError::Setting`], [`MethodError::NoConvergence`];
/// [`MethodError::Budget`] for a keep below ranks of one.
pub fn decompose(
    t: &[f32],
    dims: &[usize],
    ranks: Ranks<&[usize]>,
    whitening: Option<&Whitening<'_>>,
) -> Result<Train, MethodError> {
    ranks.check()?;
    check_weights(t, dims)?;
    let last = match dims.last() {
        Some(last) if !dims.contains(&0) => *last,
        _ => {
            return Err(MethodError::Setting {
                what: "a dimension of the tensor",
                value: 0.0,
            });
        }
    };
    let mut rest: Vec<f64> = t.iter().map(|v| f64::from(*v)).collect();
    if let Some(whitening) = whitening {
        if whitening.inputs() != last {
            return Err(MethodError::GramWidth {
                expected: last,
                found: whitening.inputs(),
            });
        }
        let fibres = MatRef::from_column_major_slice(&rest, last, rest.len() / last);
        rest = columns(whitening.whiten(fibres)?.as_ref());
    }
    let ranks = choose_ranks(&rest, dims, ranks)?;
    let mut cores = Vec::with_capacity(dims.len());
    let mut before = 1;
    for (&dim, &rank) in dims.iter().zip(&ranks) {
        let left = before * dim;
        let (core, remainder) = split(&rest, left, rank)?;
        cores.push(core);
        rest = remainder;
        before = rank;
    }
    if let Some(whitening) = whitening {
        let fibres = MatRef::from_column_major_slice(&rest, last, before);
        rest = columns(whitening.unwhiten(fibres)?.as_ref());
    }
    cores.push(rest.iter().map(|v| *v as f32).collect());
    Ok(Train {
        dims: dims.to_vec(),
        ranks,
        cores,
    })
}

impl Train {
    /// The numbers that it stores.
    pub fn parameters(&self) -> u64 {
        parameters(&self.dims, &self.ranks)
    }

    /// The tensor that it stands for, the last index fastest.
    pub fn multiply_out(&self) -> Vec<f32> {
        let mut out = vec![1.0];
        let mut before = 1;
        for (k, core) in self.cores.iter().enumerate() {
            let core: Vec<f64> = core.iter().map(|v| f64::from(*v)).collect();
            let behind = self.ranks.get(k).map_or(1, |r| *r);
            let width = self.dims[k] * behind;
            // Row-major factors are each other's transposes here.
            let left = MatRef::from_column_major_slice(&out, before, out.len() / before);
            let right = MatRef::from_column_major_slice(&core, width, before);
            out = columns(product(right, left).as_ref());
            before = behind;
        }
        out.iter().map(|v| *v as f32).collect()
    }
}

/// Rows one after another: `left` rows. The core of a rank, and what remains to be split.
fn split(rest: &[f64], left: usize, rank: usize) -> Result<(Vec<f32>, Vec<f64>), MethodError> {
    let right = rest.len() / left;
    let transposed = MatRef::from_column_major_slice(rest, right, left);
    if left <= right {
        let u = Eigen::of(lower_product(transposed.transpose(), transposed))?.leading(rank);
        let rest = product(transposed, u.as_ref());
        Ok((narrow_rows(u.as_ref()), columns(rest.as_ref())))
    } else {
        let eigen = Eigen::of(lower_product(transposed, transposed.transpose()))?;
        let largest = eigen.values[0].max(0.0).sqrt();
        // What is rounding shares the largest one's scale: the product is the same.
        let scales: Vec<f64> = eigen
            .values
            .iter()
            .map(|v| v.max(0.0).sqrt())
            .map(|s| if s > NOISE * largest { s } else { largest })
            .map(|s| if s > 0.0 { s } else { 1.0 })
            .collect();
        let mut sv = eigen.leading(rank);
        let mut u = product(transposed.transpose(), sv.as_ref());
        for (j, scale) in scales.iter().take(rank).enumerate() {
            u.col_as_slice_mut(j).iter_mut().for_each(|x| *x /= scale);
            sv.col_as_slice_mut(j).iter_mut().for_each(|x| *x *= scale);
        }
        Ok((narrow_rows(u.as_ref()), columns(sv.as_ref())))
    }
}

fn choose_ranks(
    t: &[f64],
    dims: &[usize],
    ranks: Ranks<&[usize]>,
) -> Result<Vec<usize>, MethodError> {
    let bonds = dims.len() - 1;
    let left: Vec<usize> = (1..=bonds).map(|k| dims[..k].iter().product()).collect();
    let limits: Vec<usize> = left
        .iter()
        .map(|left| *left.min(&(t.len() / left)))
        .collect();
    let spectra = || -> Result<Vec<Vec<f64>>, MethodError> {
        left.iter()
            .map(|left| Ok(tails(&spectrum(t, *left)?)))
            .collect()
    };
    let chosen = match ranks {
        Ranks::Fixed(ranks) => {
            if ranks.len() != bonds {
                return Err(MethodError::Length {
                    expected: bonds,
                    found: ranks.len(),
                });
            }
            for (rank, limit) in ranks.iter().zip(&limits) {
                check_rank(*rank, *limit)?;
            }
            ranks.to_vec()
        }
        Ranks::Tolerance(tolerance) => {
            let total: f64 = t.iter().map(|v| v * v).sum();
            let limit = tolerance * tolerance * total / bonds.max(1) as f64;
            spectra()?
                .iter()
                .map(|tails| rank_of_tail(tails, limit))
                .collect()
        }
        Ranks::Keep(keep) => {
            let budget = (keep * t.len() as f64) as u64;
            let least = vec![1; bonds];
            let needed = parameters(dims, &least);
            if needed > budget {
                return Err(MethodError::Budget { budget, needed });
            }
            grow_ranks(&spectra()?, least, |ranks| {
                parameters(dims, ranks) <= budget
            })
        }
    };
    Ok(usable_ranks(dims, chosen))
}

/// Ranks lowered to what the ways before and behind can tell apart.
pub fn usable_ranks(dims: &[usize], mut ranks: Vec<usize>) -> Vec<usize> {
    for k in 0..ranks.len() {
        let before = k.checked_sub(1).map_or(1, |k| ranks[k]);
        ranks[k] = ranks[k].min(before * dims[k]);
    }
    for k in (0..ranks.len()).rev() {
        let behind = ranks.get(k + 1).map_or(1, |r| *r);
        ranks[k] = ranks[k].min(behind * dims[k + 1]);
    }
    ranks
}

/// The squared singular values of the unfolding of `left` rows.
fn spectrum(t: &[f64], left: usize) -> Result<Vec<f64>, MethodError> {
    let transposed = MatRef::from_column_major_slice(t, t.len() / left, left);
    let gram = if left <= transposed.nrows() {
        lower_product(transposed.transpose(), transposed)
    } else {
        lower_product(transposed, transposed.transpose())
    };
    eigenvalues(gram.as_ref())
}

/// A length as a product of `ways` sizes that are as equal as its prime factors allow.
pub fn mode_sizes(len: usize, ways: usize) -> Vec<usize> {
    let mut primes = Vec::new();
    let (mut rest, mut p) = (len, 2);
    while p * p <= rest {
        while rest.is_multiple_of(p) {
            primes.push(p);
            rest /= p;
        }
        p += 1;
    }
    if rest > 1 {
        primes.push(rest);
    }
    let mut sizes = vec![1; ways.max(1)];
    for p in primes.into_iter().rev() {
        let smallest = sizes.iter().enumerate().min_by_key(|(_, size)| **size);
        let smallest = smallest.map_or(0, |(i, _)| i);
        sizes[smallest] *= p;
    }
    sizes
}

/// Decomposes W of rows M₁·…·M_d and columns N₁·…·N_d as an operator; [`mode_sizes`] proposes the
/// sizes.
///
/// # Errors
/// [`MethodError::Length`] where there are not as many sizes of columns as of rows; those of
/// [`decompose`].
pub fn decompose_matrix(
    w: &[f32],
    rows: &[usize],
    cols: &[usize],
    ranks: Ranks<&[usize]>,
) -> Result<Operator, MethodError> {
    if rows.len() != cols.len() {
        return Err(MethodError::Length {
            expected: rows.len(),
            found: cols.len(),
        });
    }
    check_weights(w, &[rows, cols].concat())?;
    let places = places(rows, cols);
    let t: Vec<f32> = places.iter().map(|place| w[*place]).collect();
    let dims: Vec<usize> = rows.iter().zip(cols).map(|(m, n)| m * n).collect();
    Ok(Operator {
        rows: rows.to_vec(),
        cols: cols.to_vec(),
        train: decompose(&t, &dims, ranks, None)?,
    })
}

impl Operator {
    /// The matrix that it stands for, rows one after another.
    pub fn multiply_out(&self) -> Vec<f32> {
        let t = self.train.multiply_out();
        let mut w = vec![0.0; t.len()];
        for (v, place) in t.iter().zip(places(&self.rows, &self.cols)) {
            w[place] = *v;
        }
        w
    }
}

/// Where each element of the train's tensor is in the matrix.
fn places(rows: &[usize], cols: &[usize]) -> Vec<usize> {
    let n: usize = cols.iter().product();
    let mut places = vec![0];
    // From the slowest index to the fastest: each way refines the place by a row and a column step.
    let (mut row_step, mut col_step) = (n * rows.iter().product::<usize>(), n);
    for (&m, &k) in rows.iter().zip(cols) {
        row_step /= m.max(1);
        col_step /= k.max(1);
        places = places
            .iter()
            .flat_map(|place| {
                let (row_step, col_step) = (row_step, col_step);
                (0..m).flat_map(move |i| (0..k).map(move |j| place + i * row_step + j * col_step))
            })
            .collect();
    }
    places
}

#[cfg(test)]
mod tests {
    use super::super::gram::Gram;
    use super::super::sample::{correlated, distance, noise};
    use super::super::svd;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn full_ranks_are_exact_and_the_error_is_within_the_tolerance(
            dims in prop::collection::vec(1usize..6, 1..5), tolerance in 0.05f64..0.9,
            seed in any::<u64>(),
        ) {
            let t = noise(dims.iter().product(), seed);
            let full = decompose(&t, &dims, Ranks::Tolerance(0.0), None).unwrap();
            prop_assert!(distance(&t, &full.multiply_out()) < 1e-5);
            let got = decompose(&t, &dims, Ranks::Tolerance(tolerance), None).unwrap();
            prop_assert!(distance(&t, &got.multiply_out()) <= tolerance + 1e-5);
            prop_assert!(got.parameters() <= full.parameters());
            let stored: usize = got.cores.iter().map(Vec::len).sum();
            prop_assert_eq!(got.parameters(), stored as u64);
            prop_assert_eq!(
                &got,
                &decompose(&t, &dims, Ranks::Fixed(&got.ranks), None).unwrap()
            );
            let kept = decompose(&t, &dims, Ranks::Keep(0.6), None);
            prop_assert!(kept.is_err() || kept.unwrap().parameters() as f64 <= 0.6 * t.len() as f64);
        }
    }

    #[test]
    fn exact_ranks_are_found_and_recovered() {
        let train = Train {
            dims: vec![4, 6, 5, 7],
            ranks: vec![3, 4, 2],
            cores: vec![noise(12, 1), noise(72, 2), noise(40, 3), noise(14, 4)],
        };
        let t = train.multiply_out();
        let g = correlated(7, 28, 2);
        let whitening = Whitening::new(Gram::new(&g, 7).unwrap(), 1e-6).unwrap();
        for whitening in [None, Some(&whitening)] {
            let got = decompose(&t, &train.dims, Ranks::Tolerance(1e-5), whitening).unwrap();
            assert_eq!(got.ranks, train.ranks);
            assert!(distance(&t, &got.multiply_out()) < 1e-5);
        }
    }

    #[test]
    fn an_operator_of_one_way_each_is_a_reshaped_matrix() {
        let (m, n) = (12, 18);
        let w = noise(m * n, 1);
        let (rows, cols) = (mode_sizes(m, 2), mode_sizes(n, 2));
        let full = decompose_matrix(&w, &rows, &cols, Ranks::Tolerance(0.0)).unwrap();
        assert!(distance(&w, &full.multiply_out()) < 1e-5);
        // With sizes (m, 1) and (1, n) it is the matrix itself, and cutting it is plain SVD.
        let got = decompose_matrix(&w, &[m, 1], &[1, n], Ranks::Fixed(&[5])).unwrap();
        let d = svd::decompose(&w, m, n).unwrap();
        let f = d.factors(&w, m, n, 5);
        let plain = svd::multiply_out(&f.a, &f.b, n, m, 5);
        assert!(distance(&plain, &got.multiply_out()) < 1e-5);
        // A Kronecker product has rank one.
        let (a, b) = (noise(3 * 2, 1), noise(4 * 5, 2));
        let kron: Vec<f32> = (0..12 * 10)
            .map(|e| (e / 10, e % 10))
            .map(|(i, j)| a[i / 4 * 2 + j / 5] * b[i % 4 * 5 + j % 5])
            .collect();
        let got = decompose_matrix(&kron, &[3, 4], &[2, 5], Ranks::Tolerance(1e-5)).unwrap();
        assert_eq!(got.train.ranks, [1]);
        assert!(distance(&kron, &got.multiply_out()) < 1e-5);
    }

    #[test]
    fn sizes_are_as_equal_as_the_primes_allow() {
        assert_eq!(mode_sizes(576, 2), [24, 24]);
        assert_eq!(mode_sizes(4096, 3), [16, 16, 16]);
        for (len, ways) in [(1536, 3), (7, 3), (1, 2), (97, 1), (14336, 4)] {
            let sizes = mode_sizes(len, ways);
            assert_eq!((sizes.len(), sizes.iter().product()), (ways, len));
        }
    }

    #[test]
    fn zeros_and_what_cannot_be() {
        let zeros = [0.0; 24];
        let of = |t: &[f32], dims: &[usize], ranks| decompose(t, dims, ranks, None);
        let got = of(&zeros, &[2, 3, 4], Ranks::Tolerance(0.1)).unwrap();
        assert_eq!(
            (got.multiply_out(), got.ranks),
            (zeros.to_vec(), vec![1, 1])
        );
        let of_24 = |ranks| of(&zeros, &[2, 3, 4], ranks).unwrap_err();
        assert!(matches!(
            of_24(Ranks::Keep(0.01)),
            MethodError::Budget { .. }
        ));
        assert!(matches!(
            of_24(Ranks::Fixed(&[3, 1])),
            MethodError::Rank { .. }
        ));
        assert!(matches!(
            of_24(Ranks::Fixed(&[1])),
            MethodError::Length { .. }
        ));
        assert!(matches!(
            of(&[], &[], Ranks::Keep(1.0)),
            Err(MethodError::Length { .. })
        ));
        assert!(matches!(
            of(&[], &[0], Ranks::Keep(1.0)),
            Err(MethodError::Setting { .. })
        ));
        let nan = of(&[f32::NAN; 24], &[2, 3, 4], Ranks::Keep(0.5));
        assert_eq!(nan, Err(MethodError::WeightsNotFinite));
        let unequal = decompose_matrix(&zeros, &[4], &[2, 3], Ranks::Keep(1.0));
        assert!(matches!(unequal, Err(MethodError::Length { .. })));
    }
}
