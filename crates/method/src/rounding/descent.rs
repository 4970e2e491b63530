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
    for (number, start) in (0..n).step_by(len).enumerate() {
        let mut slopes = curvature.slopes(errors.as_ref(), start, len);
        let gram = curvature.gram_block(start, len);
        for i in 0..rows {
            let at = i * row_bytes + number * block_bytes;
            let bytes = &mut bytes[at..at + block_bytes];
            let own = &w[i * n + start..][..len];
            let mut descent = Descent {
                grid,
                gram: &gram,
                block: grid.load(bytes),
                slopes: slopes.col_as_slice_mut(i),
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
    block: Block,
    /// G·e in the block's columns.
    slopes: &'a mut [f32],
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
        let mut direction = vec![0f32; len];
        for sub in 0..len / sub_len {
            let columns = sub * sub_len..(sub + 1) * sub_len;
            let (low, high) = self.grid.scales;
            if low < high {
                for j in columns.clone() {
                    direction[j] = self.block.d * self.grid.level(self.block.codes[j]);
                }
                let now = self.block.scales[sub];
                self.block.scales[sub] =
                    self.integer(now, (low, high), columns.clone(), &direction);
            }
            let (low, high) = self.grid.mins;
            if low < high {
                direction[columns.clone()].fill(-self.block.m);
                let now = self.block.mins[sub];
                self.block.mins[sub] = self.integer(now, (low, high), columns, &direction);
            }
        }
        for (j, v) in direction.iter_mut().enumerate() {
            let level = self.grid.level(self.block.codes[j]);
            *v = f32::from(self.block.scales[j / sub_len]) * level;
        }
        self.block.d = self.half(self.block.d, &direction);
        if self.grid.mins != (0, 0) {
            for (j, v) in direction.iter_mut().enumerate() {
                *v = -f32::from(self.block.mins[j / sub_len]);
            }
            self.block.m = self.half(self.block.m, &direction);
        }
    }

    /// The best integer of a range along a direction that is zero outside of `columns`.
    fn integer(
        &mut self,
        now: i16,
        (low, high): (i16, i16),
        columns: std::ops::Range<usize>,
        direction: &[f32],
    ) -> i16 {
        let Some((step, turned)) = self.best_step(columns, direction) else {
            return now;
        };
        let best = (f32::from(now) + step).round();
        let best = best.clamp(f32::from(low), f32::from(high)) as i16;
        self.moved(f32::from(best - now), &turned);
        best
    }

    /// The best half float along a direction; as it was where that has no finite half float.
    fn half(&mut self, now: f32, direction: &[f32]) -> f32 {
        let Some((step, turned)) = self.best_step(0..self.grid.len, direction) else {
            return now;
        };
        let best = f16::from_f32(now + step).to_f32();
        if !best.is_finite() {
            return now;
        }
        self.moved(best - now, &turned);
        best
    }

    /// (v·p)/(v·G·v), and G·v; `None` where v is nothing.
    fn best_step(
        &self,
        columns: std::ops::Range<usize>,
        direction: &[f32],
    ) -> Option<(f32, Vec<f32>)> {
        let len = self.grid.len;
        let mut turned = vec![0f32; len];
        for j in columns.clone() {
            let v = direction[j];
            let row = &self.gram[j * len..(j + 1) * len];
            turned.iter_mut().zip(row).for_each(|(t, g)| *t += v * g);
        }
        let dot = |other: &[f32]| -> f32 {
            let pairs = direction[columns.clone()]
                .iter()
                .zip(&other[columns.clone()]);
            pairs.map(|(a, b)| a * b).sum()
        };
        let curvature = dot(&turned);
        (curvature > 0.0).then(|| (dot(self.slopes) / curvature, turned))
    }

    fn moved(&mut self, by: f32, turned: &[f32]) {
        if by != 0.0 {
            let slopes = self.slopes.iter_mut().zip(turned);
            slopes.for_each(|(p, t)| *p -= by * t);
        }
    }
}
