//! Tensors of three ways: what [`tucker`](super::tucker) and [`cp`](super::cp) share.
//!
//! Element (i, j, k) of a tensor of d₀×d₁×d₂ is at (i·d₁ + j)·d₂ + k: a stack of d₀ matrices of d₁
//! rows of d₂ elements each, as heads, experts or neighbouring layers lie one after another. The
//! last way is the inputs, and the one that a Gram whitens.

use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatMut, MatRef, Par};

use super::eigen::Eigen;
use super::error::{MethodError, check_weights};
pub use super::linear::transpose;
use super::whitened::Whitening;

/// What decides the ranks of a factorization; `R` is what fixed ranks look like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ranks<R> {
    /// These.
    Fixed(R),
    /// The best that keep this fraction of the parameters, factors counted.
    Keep(f64),
    /// The smallest that keep the relative error, ‖T − T̂‖ / ‖T‖, below this.
    Tolerance(f64),
}

impl<R> Ranks<R> {
    pub(super) fn check(&self) -> Result<(), MethodError> {
        match *self {
            Self::Keep(value) if !(value > 0.0 && value.is_finite()) => Err(MethodError::Setting {
                what: "keep",
                value,
            }),
            Self::Tolerance(value) if !(value >= 0.0 && value.is_finite()) => {
                Err(MethodError::Setting {
                    what: "tolerance",
                    value,
                })
            }
            _ => Ok(()),
        }
    }
}

/// A tensor in double precision.
pub(super) struct Tensor {
    pub dims: [usize; 3],
    pub data: Vec<f64>,
}

impl Tensor {
    /// Checks and widens a tensor, whitened in its last way.
    pub fn new(
        t: &[f32],
        dims: [usize; 3],
        whitening: Option<&Whitening<'_>>,
    ) -> Result<Self, MethodError> {
        check_weights(t, &dims)?;
        if dims.contains(&0) {
            return Err(MethodError::Setting {
                what: "a dimension of the tensor",
                value: 0.0,
            });
        }
        let mut tensor = Self {
            dims,
            data: t.iter().map(|v| f64::from(*v)).collect(),
        };
        if let Some(whitening) = whitening {
            if whitening.inputs() != dims[2] {
                return Err(MethodError::GramWidth {
                    expected: dims[2],
                    found: whitening.inputs(),
                });
            }
            tensor.replace_last(whitening.whiten(tensor.last_way())?);
        }
        Ok(tensor)
    }

    /// d₂ × (d₀·d₁): the fibres of the last way in the columns.
    pub fn last_way(&self) -> MatRef<'_, f64> {
        let [d0, d1, d2] = self.dims;
        MatRef::from_column_major_slice(&self.data, d2, d0 * d1)
    }

    /// Puts other fibres of the last way in their place.
    pub fn replace_last(&mut self, fibres: Mat<f64>) {
        self.dims[2] = fibres.nrows();
        self.data = columns(fibres.as_ref());
    }

    /// (d₁·d₂) × d₀: the matrices of the stack in the columns.
    fn first_way(&self) -> MatRef<'_, f64> {
        let [d0, d1, d2] = self.dims;
        MatRef::from_column_major_slice(&self.data, d1 * d2, d0)
    }

    /// d₂ × d₁: one matrix of the stack, transposed.
    fn slice(&self, i: usize) -> MatRef<'_, f64> {
        let [_, d1, d2] = self.dims;
        MatRef::from_column_major_slice(&self.data[i * d1 * d2..(i + 1) * d1 * d2], d2, d1)
    }

    pub fn energy(&self) -> f64 {
        self.data.iter().map(|v| v * v).sum()
    }

    /// T ×ₖ Uᵀ for U of dₖ rows: the way `k` gets the length of U's columns' number.
    pub fn contract(&self, k: usize, u: MatRef<'_, f64>) -> Self {
        let mut dims = self.dims;
        dims[k] = u.ncols();
        let [d0, d1, d2] = dims;
        let mut data = vec![0.0; d0 * d1 * d2];
        let put = |out: MatMut<'_, f64>, left, right| {
            matmul(out, Accum::Replace, left, right, 1.0, Par::Seq);
        };
        match k {
            0 => {
                let out = MatMut::from_column_major_slice_mut(&mut data, d1 * d2, d0);
                put(out, self.first_way(), u);
            }
            1 => {
                for (i, out) in data.chunks_exact_mut((d1 * d2).max(1)).enumerate() {
                    let out = MatMut::from_column_major_slice_mut(out, d2, d1);
                    put(out, self.slice(i), u);
                }
            }
            _ => {
                let out = MatMut::from_column_major_slice_mut(&mut data, d2, d0 * d1);
                put(out, u.transpose(), self.last_way());
            }
        }
        Self { dims, data }
    }

    /// The Gram of the unfolding along way `k`, dₖ×dₖ: its spectrum and vectors.
    pub fn mode(&self, k: usize) -> Result<Eigen, MethodError> {
        let mut gram = Mat::<f64>::zeros(self.dims[k], self.dims[k]);
        let mut add = |left: MatRef<'_, f64>| {
            triangular::matmul(
                gram.as_mut(),
                BlockStructure::TriangularLower,
                Accum::Add,
                left,
                BlockStructure::Rectangular,
                left.transpose(),
                BlockStructure::Rectangular,
                1.0,
                Par::Seq,
            );
        };
        match k {
            0 => add(self.first_way().transpose()),
            1 => (0..self.dims[0]).for_each(|i| add(self.slice(i).transpose())),
            _ => add(self.last_way()),
        }
        Eigen::of(gram)
    }
}

/// A matrix's columns, one after another.
pub(super) fn columns(m: MatRef<'_, f64>) -> Vec<f64> {
    m.col_iter().flat_map(|c| c.iter().copied()).collect()
}

/// A matrix's rows, one after another.
pub(super) fn narrow_rows(m: MatRef<'_, f64>) -> Vec<f32> {
    m.row_iter()
        .flat_map(|r| r.iter().map(|v| *v as f32))
        .collect()
}

/// `tails[r]`: what a spectrum holds beyond its first r values.
pub(super) fn tails(spectrum: &[f64]) -> Vec<f64> {
    let mut tails = vec![0.0; spectrum.len() + 1];
    for (i, v) in spectrum.iter().enumerate().rev() {
        tails[i] = tails[i + 1] + v.max(0.0);
    }
    tails
}

/// The smallest rank whose tail is at most a limit; at least one.
pub(super) fn rank_of_tail(tails: &[f64], limit: f64) -> usize {
    tails
        .iter()
        .skip(1)
        .position(|t| *t <= limit)
        .map_or(1, |r| r + 1)
}

/// Ranks from the given ones upwards, each time of the way that has lost most and still fits.
pub(super) fn grow_ranks(
    tails: &[Vec<f64>],
    mut ranks: Vec<usize>,
    fits: impl Fn(&[usize]) -> bool,
) -> Vec<usize> {
    loop {
        let mut order: Vec<usize> = (0..ranks.len())
            .filter(|&k| ranks[k] + 1 < tails[k].len() && tails[k][ranks[k]] > 0.0)
            .collect();
        order.sort_by(|&a, &b| {
            tails[b][ranks[b]]
                .total_cmp(&tails[a][ranks[a]])
                .then(a.cmp(&b))
        });
        let grown = order.into_iter().find(|&k| {
            ranks[k] += 1;
            let fits = fits(&ranks);
            if !fits {
                ranks[k] -= 1;
            }
            fits
        });
        if grown.is_none() {
            return ranks;
        }
    }
}
