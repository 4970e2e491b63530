//! Coordinate descent on the codes and scales of a quantized matrix.
//!
//! With p = G·e for a row's error e, a change of the values along v by t changes the output's error by
//! −2·t·(v·p) + t²·(v·G·v): the best step is (v·p)/(v·G·v), and of a lattice of steps the nearest.
//! For a code v is a unit vector; for a scale it holds the levels of all elements that share it.

use super::{Block, Curvature, Grid, RoundingError, differences};
use half::f16;

/// Goes through all blocks of all rows once.
pub fn round(
    w: &[f32],
    rows: usize,
    curvature: &Curvature,
    grid: Grid,
    bytes: &mut [u8],
) -> Result<(), RoundingError> {
    let n = curvature.n();
    let (len, block_bytes) = (grid.len, grid.bytes());
    let row_bytes = n / len * block_bytes;
    let mut errors = differences(w, rows, n, grid.ty(), bytes)?;
    let mut levels = Vec::with_capacity(len);
    let mut turned = vec![0f32; len / grid.sub_len * len];
    for (number, start) in (0..n).step_by(len).enumerate() {
        let mut slopes = curvature.slopes(errors.as_ref(), start, len);
        let gram = curvature.gram_block(start, len);
        let ones = turned_ones(grid, &gram);
        for i in 0..rows {
            let at = i * row_bytes + number * block_bytes;
            let bytes = &mut bytes[at..at + block_bytes];
            let own = &w[i * n + start..][..len];
            let mut descent = Descent {
                grid,
                gram: &gram,
                ones: &ones,
                block: grid.load(bytes),
                slopes: slopes.col_as_slice_mut(i),
                levels: &mut levels,
                turned: &mut turned,
            };
            descent.codes();
            descent.scales();
            descent.codes();
            grid.store(&descent.block, bytes);
            let errors = &mut errors.col_as_slice_mut(i)[start..start + len];
            for (j, e) in errors.iter_mut().enumerate() {
                *e = own[j] - grid.value(&descent.block, j);
            }
        }
    }
    Ok(())
}

/// One block of one row.
struct Descent<'a> {
    grid: Grid,
    /// The Gram of the block's columns.
    gram: &'a [f32],
    /// What it makes of ones in the columns of each sub-block.
    ones: &'a [f32],
    block: Block,
    /// G·e in the block's columns.
    slopes: &'a mut [f32],
    /// The levels of the block's codes, and of each sub-block's what G makes of them.
    levels: &'a mut Vec<f32>,
    turned: &'a mut [f32],
}

impl Descent<'_> {
    /// Every code to its optimum.
    fn codes(&mut self) {
        let len = self.grid.len;
        for j in 0..len {
            let sub = j / self.grid.sub_len;
            let scale = self.block.d * f32::from(self.block.scales[sub]);
            if scale == 0.0 {
                continue;
            }
            let now = self.block.codes[j];
            let level = self.grid.level(now);
            let step = self.slopes[j] / self.gram[j * len + j];
            let best = self.grid.nearest(level + step / scale);
            if best != now {
                let change = scale * (self.grid.level(best) - level);
                self.block.codes[j] = best;
                let row = &self.gram[j * len..(j + 1) * len];
                let slopes = self.slopes.iter_mut().zip(row);
                slopes.for_each(|(p, g)| *p -= change * g);
            }
        }
    }

    /// Every scale to its optimum: those of sub-blocks, then those of the block.
    fn scales(&mut self) {
        let (len, sub_len) = (self.grid.len, self.grid.sub_len);
        let subs = len / sub_len;
        self.turn_levels();
        for sub in 0..subs {
            let turned = sub * len..(sub + 1) * len;
            let columns = sub * sub_len..(sub + 1) * sub_len;
            let (low, high) = self.grid.scales;
            if low < high {
                let d = self.block.d;
                let direction: Vec<f32> =
                    self.levels[columns.clone()].iter().map(|l| d * l).collect();
                let step = best_step(
                    &direction,
                    &self.turned[turned.clone()],
                    self.slopes,
                    &columns,
                    d,
                );
                let now = self.block.scales[sub];
                let best = integer(now, step, (low, high));
                self.block.scales[sub] = best;
                moved(
                    self.slopes,
                    f32::from(best - now) * d,
                    &self.turned[turned.clone()],
                );
            }
            let (low, high) = self.grid.mins;
            if low < high {
                let m = -self.block.m;
                let direction = vec![m; sub_len];
                let step = best_step(
                    &direction,
                    &self.ones[turned.clone()],
                    self.slopes,
                    &columns,
                    m,
                );
                let now = self.block.mins[sub];
                let best = integer(now, step, (low, high));
                self.block.mins[sub] = best;
                moved(self.slopes, f32::from(best - now) * m, &self.ones[turned]);
            }
        }
        let scale = |j: usize| f32::from(self.block.scales[j / sub_len]);
        let direction: Vec<f32> = (0..len).map(|j| scale(j) * self.levels[j]).collect();
        let sum = mixed(self.turned, len, |sub| f32::from(self.block.scales[sub]));
        self.block.d = half(self.block.d, &direction, &sum, self.slopes);
        if self.grid.mins != (0, 0) {
            let min = |sub: usize| -f32::from(self.block.mins[sub]);
            let direction: Vec<f32> = (0..len).map(|j| min(j / sub_len)).collect();
            let sum = mixed(self.ones, len, min);
            self.block.m = half(self.block.m, &direction, &sum, self.slopes);
        }
    }

    /// The levels of all codes, and of each sub-block's what G makes of them.
    fn turn_levels(&mut self) {
        let (len, sub_len) = (self.grid.len, self.grid.sub_len);
        let codes = self.block.codes[..len].iter();
        self.levels.clear();
        self.levels.extend(codes.map(|c| self.grid.level(*c)));
        self.turned.fill(0.0);
        for (j, level) in self.levels.iter().enumerate() {
            if *level == 0.0 {
                continue;
            }
            let row = &self.gram[j * len..(j + 1) * len];
            let turned = &mut self.turned[j / sub_len * len..][..len];
            turned
                .iter_mut()
                .zip(row)
                .for_each(|(t, g)| *t += level * g);
        }
    }
}

/// What G makes of ones in each sub-block's columns, one row of `len` elements after another.
fn turned_ones(grid: Grid, gram: &[f32]) -> Vec<f32> {
    let (len, sub_len) = (grid.len, grid.sub_len);
    let mut ones = vec![0f32; len / sub_len * len];
    for (j, row) in gram.chunks(len).enumerate() {
        let turned = &mut ones[j / sub_len * len..][..len];
        turned.iter_mut().zip(row).for_each(|(t, g)| *t += g);
    }
    ones
}

/// A weighted sum of rows.
fn mixed(rows: &[f32], len: usize, weight: impl Fn(usize) -> f32) -> Vec<f32> {
    let mut sum = vec![0f32; len];
    for (i, row) in rows.chunks(len).enumerate() {
        let weight = weight(i);
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += weight * v);
    }
    sum
}

/// (v·p)/(v·G·v) of a direction v that is nothing outside of `columns`, where `turned` times `factor`
/// is G·v; `None` where v is nothing.
fn best_step(
    direction: &[f32],
    turned: &[f32],
    slopes: &[f32],
    columns: &std::ops::Range<usize>,
    factor: f32,
) -> Option<f32> {
    let dot = |other: &[f32]| -> f32 {
        let pairs = direction.iter().zip(&other[columns.clone()]);
        pairs.map(|(a, b)| a * b).sum()
    };
    let curvature = factor * dot(turned);
    (curvature > 0.0).then(|| dot(slopes) / curvature)
}

/// The best integer of a range.
fn integer(now: i16, step: Option<f32>, (low, high): (i16, i16)) -> i16 {
    let best = (f32::from(now) + step.unwrap_or(0.0)).round();
    best.clamp(f32::from(low), f32::from(high)) as i16
}

/// The best half float along a direction, whose slopes then follow; as it was where that has no finite
/// half float.
fn half(now: f32, direction: &[f32], turned: &[f32], slopes: &mut [f32]) -> f32 {
    let all = 0..direction.len();
    let Some(step) = best_step(direction, turned, slopes, &all, 1.0) else {
        return now;
    };
    let best = f16::from_f32(now + step).to_f32();
    if !best.is_finite() {
        return now;
    }
    moved(slopes, best - now, turned);
    best
}

fn moved(slopes: &mut [f32], by: f32, turned: &[f32]) {
    if by != 0.0 {
        let slopes = slopes.iter_mut().zip(turned);
        slopes.for_each(|(p, t)| *p -= by * t);
    }
}
