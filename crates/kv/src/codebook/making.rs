//! Makes a codebook from what a model keeps of a text.

use std::ops::Range;

use dwindle_method::eigen::Eigen;
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::{Accum, Mat, MatRef, Par};
use rayon::prelude::*;

use super::{Codebook, Geometry, Group, Kind, Origin};
use crate::cells::Cells;
use crate::error::KvError;

/// What an error of each head costs, before layers are compared: symmetric matrices, row by row, of all heads.
#[derive(Debug, Clone, PartialEq)]
pub struct Metrics {
    /// Of each layer's keys.
    pub keys: Vec<Vec<f32>>,
    /// Of each layer's values.
    pub values: Vec<Vec<f32>>,
}

/// Products of the rows of layers that may form groups.
pub struct Moments {
    geometry: Geometry,
    sums: Vec<Sum>,
}

struct Sum {
    kind: Kind,
    layers: Range<usize>,
    count: u64,
    /// What is taken from each row, near its mean.
    shift: Vec<f32>,
    total: Vec<f64>,
    /// The lower half.
    products: Mat<f64>,
}

/// How a codebook is cut and how large it may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Whether each layer stands alone.
    pub is_single: bool,
    /// Bytes of all components and metrics.
    pub bytes: u64,
}

impl Moments {
    /// For groups of neighbouring layers with at most so many elements, of about equal sizes.
    pub fn new(geometry: &Geometry, elements: usize) -> Moments {
        let mut sums = Vec::new();
        for kind in [Kind::Keys, Kind::Values] {
            let layers = geometry.layers(kind);
            let all = geometry.width_of(kind, 0..layers);
            let groups = all.div_ceil(elements.max(1)).clamp(1, layers.max(1));
            for g in 0..groups {
                let layers = g * layers / groups..(g + 1) * layers / groups;
                let width = geometry.width_of(kind, layers.clone());
                if width > 0 {
                    sums.push(Sum {
                        kind,
                        layers,
                        count: 0,
                        shift: Vec::new(),
                        total: vec![0.0; width],
                        products: Mat::zeros(width, width),
                    });
                }
            }
        }
        let geometry = geometry.clone();
        Moments { geometry, sums }
    }

    /// Adds cells as they are saved.
    pub fn add(&mut self, mut cells: Cells) {
        self.geometry.turn(&mut cells, true);
        let (geometry, cells) = (&self.geometry, &cells);
        self.sums
            .par_iter_mut()
            .for_each(|sum| sum.add(geometry, cells));
    }

    /// Tokens that were added.
    pub fn tokens(&self) -> u64 {
        self.sums.first().map_or(0, |sum| sum.count)
    }

    /// A codebook in which an error of a layer costs what `metrics` and the layer's scale say. `scales` has one for each
    /// layer's keys and values.
    ///
    /// # Errors
    /// The decomposition does not converge.
    pub fn codebook(
        &self,
        metrics: &Metrics,
        scales: (&[f64], &[f64]),
        cut: Cut,
        origin: Origin,
    ) -> Result<Codebook, KvError> {
        let mut parts = Vec::new();
        for sum in &self.sums {
            let layers = sum.layers.clone();
            match cut.is_single {
                true => parts.extend(layers.map(|l| (sum, l..l + 1))),
                false => parts.push((sum, layers)),
            }
        }
        let made = parts.par_iter().map(|(sum, layers)| {
            let (metrics, scales) = match sum.kind {
                Kind::Keys => (&metrics.keys, scales.0),
                Kind::Values => (&metrics.values, scales.1),
            };
            let metric = layers.clone().flat_map(|l| {
                metrics[l]
                    .iter()
                    .map(move |m| (f64::from(*m) * scales[l]) as f32)
            });
            self.group(sum, layers.clone(), metric.collect())
        });
        let mut groups = made.collect::<Result<Vec<_>, KvError>>()?;
        shorten(&mut groups, cut.bytes);
        let mut codebook = Codebook {
            origin,
            geometry: self.geometry.clone(),
            groups,
            places: super::Places::default(),
            trials: Vec::new(),
        };
        codebook.round();
        Ok(codebook)
    }

    fn group(
        &self,
        sum: &Sum,
        layers: Range<usize>,
        mut metric: Vec<f32>,
    ) -> Result<Group, KvError> {
        let (kind, head) = (sum.kind, self.geometry.head(sum.kind));
        let first = self.geometry.width_of(kind, sum.layers.start..layers.start);
        let width = self.geometry.width_of(kind, layers.clone());
        let (mean, mut covariance) = sum.moments(first..first + width);
        let mut roots = Vec::new();
        let mut inverses = Vec::new();
        for block in metric.chunks_exact_mut(head * head) {
            let (root, inverse) = roots_of(block, head)?;
            roots.push(root);
            inverses.push(inverse);
        }
        by_heads(&roots, &mut covariance);
        let covariance = covariance.transpose().to_owned();
        let mut covariance = covariance;
        by_heads(&roots, &mut covariance);
        let eigen = Eigen::of(covariance)?;
        let deviations = eigen
            .values
            .iter()
            .map(|v| v.max(0.0).sqrt() as f32)
            .collect();
        let mut components = eigen.vectors();
        by_heads(&inverses, &mut components);
        let basis = (0..width).flat_map(|i| components.col_as_slice(i).to_vec());
        Ok(Group {
            kind,
            layers,
            mean,
            metric,
            basis: basis.map(|v| v as f32).collect(),
            precise: 0,
            deviations,
        })
    }
}

/// left · right, on one thread.
fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::zeros(left.nrows(), right.ncols());
    matmul(out.as_mut(), Accum::Replace, left, right, 1.0, Par::Seq);
    out
}

/// Multiplies the heads of all columns by their matrices.
fn by_heads(blocks: &[Mat<f64>], columns: &mut Mat<f64>) {
    let mut begin = 0;
    for block in blocks {
        let n = block.nrows();
        let rows = product(block.as_ref(), columns.as_ref().subrows(begin, n));
        columns.as_mut().subrows_mut(begin, n).copy_from(rows);
        begin += n;
    }
}

/// The square root of a symmetric matrix, and its inverse. Directions that cost nothing are made to cost a little, in the
/// matrix, too.
fn roots_of(block: &mut [f32], n: usize) -> Result<(Mat<f64>, Mat<f64>), KvError> {
    let matrix = Mat::from_fn(n, n, |i, j| {
        f64::from(block[i * n + j] + block[j * n + i]) / 2.0
    });
    let eigen = Eigen::of(matrix)?;
    let vectors = eigen.vectors();
    let largest = eigen.values.first().copied().unwrap_or(0.0);
    let mean = eigen.values.iter().map(|v| v.max(0.0)).sum::<f64>() / n as f64;
    let least = if largest > 0.0 { mean * LEAST } else { 1.0 };
    let power = |exponent: f64| {
        let mut scaled = vectors.clone();
        for (i, value) in eigen.values.iter().enumerate() {
            let factor = value.max(least).powf(exponent);
            scaled
                .col_as_slice_mut(i)
                .iter_mut()
                .for_each(|v| *v *= factor);
        }
        product(scaled.as_ref(), vectors.transpose())
    };
    let sound = power(1.0);
    for i in 0..n {
        for j in 0..n {
            block[i * n + j] = sound[(i, j)] as f32;
        }
    }
    Ok((power(0.5), power(-0.5)))
}

/// The least cost of a direction, in parts of the mean.
const LEAST: f64 = 1e-2;
/// Components of so many times the middle deviation are kept with 16 bits.
const PRECISE: f32 = 8.0;

/// Keeps the components along which rows vary most, in as many bytes as there may be.
fn shorten(groups: &mut [Group], bytes: u64) {
    let mut all: Vec<f32> = groups.iter().flat_map(|g| g.deviations.clone()).collect();
    all.sort_unstable_by(f32::total_cmp);
    let middle = all.get(all.len() / 2).copied().unwrap_or(0.0);
    for group in &mut *groups {
        group.precise = group.deviations.partition_point(|d| *d > middle * PRECISE);
    }
    let size = |group: &Group, kept: usize| {
        let width = group.mean.len() as u64;
        let high = group.precise.min(kept) as u64;
        width * (kept as u64 + high)
    };
    let kept = |group: &Group, least: f32| group.deviations.partition_point(|d| *d > least);
    let fits = |least: f32| {
        let sizes = groups
            .iter()
            .map(|g| size(g, kept(g, least)) + 2 * g.metric.len() as u64);
        sizes.sum::<u64>() <= bytes
    };
    // The least deviation with which all fits: one of those that there are, or none.
    let first = match fits(0.0) {
        true => 0.0,
        false => all[all.partition_point(|d| !fits(*d)).min(all.len() - 1)],
    };
    for group in groups {
        let kept = kept(group, first);
        group.precise = group.precise.min(kept);
        group.deviations.truncate(kept);
        group.basis.truncate(kept * group.mean.len());
    }
}

impl Sum {
    fn add(&mut self, geometry: &Geometry, cells: &Cells) {
        let (width, count) = (self.total.len(), cells.positions.len());
        let mut rows = geometry.gather(self.kind, self.layers.clone(), cells);
        if self.shift.is_empty() {
            self.shift = vec![0.0; width];
            for row in rows.chunks_exact(width) {
                self.shift
                    .iter_mut()
                    .zip(row)
                    .for_each(|(s, v)| *s += v / count as f32);
            }
        }
        for row in rows.chunks_exact_mut(width) {
            row.iter_mut().zip(&self.shift).for_each(|(v, s)| *v -= s);
            self.total
                .iter_mut()
                .zip(&*row)
                .for_each(|(t, v)| *t += f64::from(*v));
        }
        self.count += count as u64;
        let rows = MatRef::from_column_major_slice(&rows, width, count);
        let mut products = Mat::<f32>::zeros(width, width);
        triangular::matmul(
            products.as_mut(),
            BlockStructure::TriangularLower,
            Accum::Replace,
            rows,
            BlockStructure::Rectangular,
            rows.transpose(),
            BlockStructure::Rectangular,
            1.0,
            Par::Seq,
        );
        for j in 0..width {
            let from = &products.col_as_slice(j)[j..];
            let to = &mut self.products.col_as_slice_mut(j)[j..];
            to.iter_mut()
                .zip(from)
                .for_each(|(t, v)| *t += f64::from(*v));
        }
    }

    /// Mean and covariance of some elements.
    fn moments(&self, elements: Range<usize>) -> (Vec<f32>, Mat<f64>) {
        let n = (self.count as f64).max(1.0);
        let mean: Vec<f64> = self.total[elements.clone()].iter().map(|t| t / n).collect();
        let covariance = Mat::from_fn(elements.len(), elements.len(), |i, j| {
            let (low, high) = (i.max(j) + elements.start, i.min(j) + elements.start);
            self.products[(low, high)] / n - mean[i] * mean[j]
        });
        let shift = self.shift.get(elements).unwrap_or(&[]);
        let mean = mean
            .iter()
            .zip(shift)
            .map(|(m, s)| (m + f64::from(*s)) as f32);
        (mean.collect(), covariance)
    }
}
