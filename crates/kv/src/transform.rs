//! Packs cells by a codebook: differences from the mean, seen along its components, in uniform steps.

use dwindle_method::linear::{cholesky, solve};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;

use crate::cells::Cells;
use crate::codebook::{Codebook, Group, Kind};
use crate::error::KvError;
use crate::levels;

/// Values below this part of a step become 0, and others are rounded as far down: smaller numbers take fewer bits than
/// the error costs.
const DEAD: f32 = 0.6;

/// A codebook made ready to pack.
///
/// Its components are rounded, and no longer orthonormal: what varies much along one would leak into others. So rows are
/// divided among the components by least squares in the metric: z = (BMBᵀ)⁻¹·BM·x.
#[derive(Debug)]
pub struct Encoder<'a> {
    /// The codebook.
    pub codebook: &'a Codebook,
    /// Of each group, a row for each component.
    matrices: Vec<Vec<f32>>,
}

impl<'a> Encoder<'a> {
    /// Makes a codebook ready.
    ///
    /// # Errors
    /// Its components depend on one another.
    pub fn new(codebook: &'a Codebook) -> Result<Encoder<'a>, KvError> {
        let matrix = |group: &Group| {
            let (components, width) = (group.deviations.len(), group.mean.len());
            let head = codebook.geometry.head(group.kind);
            let weighted = weigh_by(&group.metric, head, &group.basis, width);
            let weighted = MatRef::from_row_major_slice(&weighted, components, width);
            let basis = MatRef::from_row_major_slice(&group.basis, components, width);
            let mut products = Mat::<f32>::zeros(components, components);
            let (to, transposed) = (products.as_mut(), basis.transpose());
            matmul(to, Accum::Replace, weighted, transposed, 1.0, Par::Seq);
            let depend = || KvError::Codebook("its components depend on one another".into());
            let factor = cholesky(products).ok_or_else(depend)?;
            let mut solved = weighted.to_owned();
            solve(&factor, &mut solved);
            let mut out = vec![0.0; components * width];
            MatMut::from_row_major_slice_mut(&mut out, components, width).copy_from(solved);
            Ok(out)
        };
        Ok(Encoder {
            matrices: codebook
                .groups
                .par_iter()
                .map(matrix)
                .collect::<Result<_, KvError>>()?,
            codebook,
        })
    }

    /// Coefficients of cells, whose keys are turned back.
    pub(crate) fn analyse(&self, mut cells: Cells) -> Coefficients {
        let codebook = self.codebook;
        codebook.geometry.turn(&mut cells, true);
        let count = cells.positions.len();
        let groups = codebook.groups.iter().zip(&self.matrices);
        Coefficients {
            factors: factors(codebook, (cells.before, count, cells.after)),
            groups: groups
                .map(|(g, matrix)| self.project(g, matrix, &cells))
                .collect(),
        }
    }

    fn project(&self, group: &Group, matrix: &[f32], cells: &Cells) -> Vec<f32> {
        let rows = self
            .codebook
            .geometry
            .gather(group.kind, group.layers.clone(), cells);
        let (width, count) = (group.mean.len(), cells.positions.len());
        let components = group.deviations.len();
        let mut out = vec![0.0; components * count];
        let mut rows = rows;
        for row in rows.chunks_exact_mut(width) {
            row.iter_mut().zip(&group.mean).for_each(|(v, m)| *v -= m);
        }
        product(&mut out, matrix, &rows, (components, width, count));
        out
    }
}

/// A codebook at work.
pub(crate) struct Transform<'a> {
    pub codebook: &'a Codebook,
    pub step: f32,
}

/// Coefficients of some cells, before they are rounded: of each group, rows of as many as it has components.
pub(crate) struct Coefficients {
    /// The step of each cell, in steps of those in the middle; none for cells that are kept as they are.
    factors: Vec<Option<f32>>,
    groups: Vec<Vec<f32>>,
}

impl Coefficients {
    /// How many cells they are of.
    pub fn cells(&self) -> usize {
        self.factors.len()
    }
}

impl Transform<'_> {
    /// Coefficients as bytes; `None` where one has more steps than can be written.
    pub fn encode(&self, coefficients: &Coefficients) -> Option<Vec<u8>> {
        let streams = self.codebook.groups.iter().zip(&coefficients.groups);
        let streams =
            streams.map(|(group, values)| self.encode_group(group, values, &coefficients.factors));
        let mut out = Vec::new();
        for stream in streams {
            let stream = stream?;
            out.extend((stream.len() as u32).to_le_bytes());
            out.extend(stream);
        }
        Some(out)
    }

    fn encode_group(
        &self,
        group: &Group,
        values: &[f32],
        factors: &[Option<f32>],
    ) -> Option<Vec<u8>> {
        let components = group.deviations.len();
        let mut numbers = Vec::with_capacity(values.len());
        let mut rank = 0;
        for (row, factor) in values.chunks_exact(components.max(1)).zip(factors) {
            // Infinite steps make nothing of cells that are kept as they are.
            let step = factor.map_or(f32::INFINITY, |factor| self.step * factor);
            for (i, value) in row.iter().enumerate() {
                let size = (value.abs() / step + 1.0 - DEAD) as i32;
                if size > levels::LARGEST {
                    return None;
                }
                if size > 0 {
                    rank = rank.max(i + 1);
                }
                numbers.push(if *value < 0.0 { -size } else { size });
            }
        }
        let mut kept = Vec::with_capacity(rank * factors.len());
        for row in numbers.chunks_exact(components.max(1)) {
            kept.extend_from_slice(&row[..rank]);
        }
        let mut out = (rank as u32).to_le_bytes().to_vec();
        if rank > 0 {
            out.extend(levels::encode(&kept, &self.expected(group, rank, factors)));
        }
        Some(out)
    }

    fn expected(&self, group: &Group, rank: usize, factors: &[Option<f32>]) -> Vec<u32> {
        let first = factors.iter().flatten().next().copied().unwrap_or(1.0);
        let step = self.step * first;
        let of = |deviation: &f32| levels::expected(deviation / step);
        group.deviations[..rank].iter().map(of).collect()
    }

    /// The cells whose bytes these are, with so many after them.
    pub fn decode(
        &self,
        payload: &[u8],
        positions: &[i32],
        (before, after): (usize, usize),
    ) -> Result<Cells, KvError> {
        let geometry = &self.codebook.geometry;
        let count = positions.len();
        let rows = |kind: Kind| -> Vec<Vec<f32>> {
            let layers = 0..geometry.layers(kind);
            layers
                .map(|l| vec![0.0; geometry.width(kind, l) * count])
                .collect()
        };
        let mut cells = Cells {
            positions: positions.to_vec(),
            before,
            after,
            keys: rows(Kind::Keys),
            values: rows(Kind::Values),
        };
        let damaged = || KvError::Settings("a record is cut off".into());
        let mut rest = payload;
        for group in &self.codebook.groups {
            let (len, more) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
            let len = u32::from_le_bytes(*len) as usize;
            let (stream, more) = more.split_at_checked(len).ok_or_else(damaged)?;
            rest = more;
            self.decode_group(group, stream, &mut cells)
                .ok_or_else(damaged)?;
        }
        geometry.turn(&mut cells, false);
        Ok(cells)
    }

    fn decode_group(&self, group: &Group, stream: &[u8], cells: &mut Cells) -> Option<()> {
        let (rank, bytes) = stream.split_first_chunk::<4>()?;
        let rank = u32::from_le_bytes(*rank) as usize;
        if rank > group.deviations.len() {
            return None;
        }
        let count = cells.positions.len();
        let factors = factors(self.codebook, (cells.before, count, cells.after));
        let mut values = vec![0f32; rank * count];
        if rank > 0 {
            let mut numbers = vec![0; rank * count];
            levels::decode(bytes, &self.expected(group, rank, &factors), &mut numbers);
            let rows = values
                .chunks_exact_mut(rank)
                .zip(numbers.chunks_exact(rank));
            for ((values, numbers), factor) in rows.zip(&factors) {
                let step = self.step * factor.unwrap_or(0.0);
                values
                    .iter_mut()
                    .zip(numbers)
                    .for_each(|(v, n)| *v = *n as f32 * step);
            }
        }
        let width = group.mean.len();
        let mut rows = vec![0.0; width * count];
        restore(&mut rows, &group.basis, &values, (rank, width, count));
        self.scatter(group, &rows, cells);
        Some(())
    }

    fn scatter(&self, group: &Group, rows: &[f32], cells: &mut Cells) {
        let geometry = &self.codebook.geometry;
        let width = group.mean.len();
        let mut begin = 0;
        for layer in group.layers.clone() {
            let target = match group.kind {
                Kind::Keys => &mut cells.keys[layer],
                Kind::Values => &mut cells.values[layer],
            };
            let len = geometry.width(group.kind, layer);
            let mean = &group.mean[begin..begin + len];
            for (to, from) in target.chunks_exact_mut(len).zip(rows.chunks_exact(width)) {
                let from = from[begin..begin + len].iter().zip(mean);
                to.iter_mut().zip(from).for_each(|(t, (v, m))| *t = v + m);
            }
            begin += len;
        }
    }
}

/// Cells as they come back from a codebook and a step.
///
/// # Errors
/// None that packing and unpacking do not have.
pub fn approximate(encoder: &Encoder<'_>, step: f32, cells: &Cells) -> Result<Cells, KvError> {
    let transform = Transform {
        codebook: encoder.codebook,
        step,
    };
    let count = cells.positions.len();
    let pieces: Vec<_> = (0..count)
        .step_by(PIECE)
        .map(|i| i..(i + PIECE).min(count))
        .collect();
    let near = pieces.into_par_iter().map(|range| {
        let piece = cells.piece(range);
        let (positions, around) = (piece.positions.clone(), (piece.before, piece.after));
        let Some(bytes) = transform.encode(&encoder.analyse(piece.clone())) else {
            return Ok(piece);
        };
        let mut near = transform.decode(&bytes, &positions, around)?;
        let exact = encoder.codebook.places.exact.saturating_sub(piece.before);
        near.take_first(&piece, exact);
        Ok(near)
    });
    Ok(Cells::joined(near.collect::<Result<Vec<_>, KvError>>()?))
}

/// The step of each of so many cells, in steps of those in the middle; none for those that are kept as they are.
fn factors(codebook: &Codebook, (before, count, after): (usize, usize, usize)) -> Vec<Option<f32>> {
    let places = &codebook.places;
    let of = |i: usize| {
        let is_coded = before + i >= places.exact;
        is_coded.then(|| places.factor(before + i, after + count - 1 - i))
    };
    (0..count).map(of).collect()
}

/// Cells that are approximated together.
const PIECE: usize = 256;

/// What errors cost by a codebook's metrics: of each layer's keys, and of its values, for each cell.
pub fn costs(codebook: &Codebook, cells: &Cells, others: &Cells) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let geometry = &codebook.geometry;
    let (mut cells, mut others) = (cells.clone(), others.clone());
    geometry.turn(&mut cells, true);
    geometry.turn(&mut others, true);
    let mut found = (Vec::new(), Vec::new());
    for group in &codebook.groups {
        let (a, b, costs) = match group.kind {
            Kind::Keys => (&cells.keys, &others.keys, &mut found.0),
            Kind::Values => (&cells.values, &others.values, &mut found.1),
        };
        let head = geometry.head(group.kind);
        let mut metric = group.metric.as_slice();
        for layer in group.layers.clone() {
            let width = geometry.width(group.kind, layer);
            let errors: Vec<f32> = a[layer].iter().zip(&b[layer]).map(|(a, b)| a - b).collect();
            let (own, rest) = metric.split_at(width * head);
            metric = rest;
            let weighted = weigh_by(own, head, &errors, width);
            let of = |(e, w): (&[f32], &[f32])| {
                e.iter()
                    .zip(w)
                    .map(|(e, w)| f64::from(*e) * f64::from(*w))
                    .sum()
            };
            let rows = errors.chunks_exact(width).zip(weighted.chunks_exact(width));
            costs.push(rows.map(of).collect());
        }
    }
    found
}

/// Rows with the metric of each head applied.
fn weigh_by(metric: &[f32], head: usize, rows: &[f32], width: usize) -> Vec<f32> {
    let count = rows.len() / width.max(1);
    let mut out = vec![0.0; rows.len()];
    for (h, metric) in metric.chunks_exact(head * head).enumerate() {
        let metric = MatRef::from_row_major_slice(metric, head, head);
        let rows = MatRef::from_row_major_slice(rows, count, width).subcols(h * head, head);
        let mut out = MatMut::from_row_major_slice_mut(&mut out, count, width);
        let out = out.as_mut().subcols_mut(h * head, head);
        matmul(out, Accum::Replace, rows, metric, 1.0f32, Par::Seq);
    }
    out
}

/// Rows along components.
fn product(
    out: &mut [f32],
    basis: &[f32],
    rows: &[f32],
    (components, width, count): (usize, usize, usize),
) {
    let basis = MatRef::from_row_major_slice(basis, components, width);
    let rows = MatRef::from_row_major_slice(rows, count, width);
    let out = MatMut::from_row_major_slice_mut(out, count, components);
    matmul(out, Accum::Replace, rows, basis.transpose(), 1.0, Par::Seq);
}

/// Sums of the first components.
fn restore(
    out: &mut [f32],
    basis: &[f32],
    values: &[f32],
    (rank, width, count): (usize, usize, usize),
) {
    let basis = MatRef::from_row_major_slice(&basis[..rank * width], rank, width);
    let values = MatRef::from_row_major_slice(values, count, rank);
    let out = MatMut::from_row_major_slice_mut(out, count, width);
    matmul(out, Accum::Replace, values, basis, 1.0, Par::Seq);
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;
    use crate::codebook::{Cut, Geometry, Metrics, Moments, Origin};
    use crate::turns::{Pairing, Rotary, angles};

    const HEAD: usize = 4;

    fn geometry() -> Geometry {
        let rotary = Rotary {
            pairing: Pairing::Halves,
            first: 0,
            angles: angles(2, (100.0, 1.0), None, None),
        };
        Geometry {
            keys: vec![8; 3],
            values: vec![4; 3],
            key_head: HEAD,
            value_head: HEAD,
            rotary: Some(vec![rotary; 3]),
        }
    }

    fn origin() -> Origin {
        Origin {
            model: String::new(),
            architecture: String::new(),
            text: String::new(),
            tokens: 0,
        }
    }

    /// Rows that vary along few directions, around a mean that is far from 0.
    fn cells(count: usize, seed: u64) -> Cells {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut cells = Cells {
            positions: (0..count as i32).collect(),
            before: 0,
            after: 0,
            keys: vec![Vec::new(); 3],
            values: vec![Vec::new(); 3],
        };
        for _ in 0..count {
            let shared: [f32; 2] = [random.random::<f32>() - 0.5, random.random::<f32>() - 0.5];
            let mut value = |i: usize| {
                let noise = random.random::<f32>() - 0.5;
                30.0 * (i % 3) as f32 + shared[i % 2] * (5 + i % 4) as f32 + noise * 0.1
            };
            for layer in 0..3 {
                cells.keys[layer].extend((0..8).map(&mut value));
                cells.values[layer].extend((0..4).map(&mut value));
            }
        }
        geometry().turn(&mut cells, false);
        cells
    }

    fn codebook(bytes: u64) -> Codebook {
        let mut moments = Moments::new(&geometry(), 1 << 20);
        moments.add(cells(300, 1));
        moments.add(cells(200, 2));
        let metric = |scale: f32| -> Vec<f32> {
            (0..16)
                .map(|i| {
                    if i % 5 == 0 {
                        scale * (1 + i) as f32
                    } else {
                        0.1 * scale
                    }
                })
                .collect()
        };
        let metrics = Metrics {
            keys: vec![[metric(1.0), metric(3.0)].concat(); 3],
            values: vec![metric(2.0); 3],
        };
        let cut = Cut {
            is_single: false,
            bytes,
        };
        let scales = [1.0, 0.5, 4.0];
        moments
            .codebook(&metrics, (&scales, &scales), cut, origin())
            .unwrap()
    }

    fn total((keys, values): (Vec<Vec<f64>>, Vec<Vec<f64>>)) -> f64 {
        keys.iter().chain(&values).flatten().sum()
    }

    #[test]
    fn small_steps_lose_little_and_errors_cost_as_predicted() {
        let codebook = codebook(u64::MAX);
        let encoder = Encoder::new(&codebook).unwrap();
        let other = cells(300, 3);
        for cost in [1e-4, 1e-2, 1.0] {
            let step = codebook.step_of_cost(cost);
            let near = approximate(&encoder, step, &other).unwrap();
            let found = total(costs(&codebook, &other, &near)) / 300.0;
            assert!((0.5..1.6).contains(&(found / cost)), "{cost}: {found}");
        }
    }

    #[test]
    fn fewer_components_take_fewer_bytes_and_lose_what_they_held() {
        let (all, few) = (codebook(u64::MAX), codebook(200));
        let count = |c: &Codebook| c.groups.iter().map(|g| g.deviations.len()).sum::<usize>();
        assert_eq!(count(&all), 36);
        assert!(count(&few) < 12, "{}", count(&few));
        let other = cells(64, 4);
        let near = approximate(&Encoder::new(&few).unwrap(), 1e-4, &other).unwrap();
        let lost = total(costs(&all, &other, &near)) / 64.0;
        let dropped: f64 = all
            .groups
            .iter()
            .zip(&few.groups)
            .map(|(a, f)| {
                a.deviations[f.deviations.len()..]
                    .iter()
                    .map(|d| f64::from(*d).powi(2))
                    .sum::<f64>()
            })
            .sum();
        assert!((0.7..1.4).contains(&(lost / dropped)), "{lost} {dropped}");
    }
}
