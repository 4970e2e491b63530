//! The rotations that stand between what a layer makes and what is saved: RoPE by a token's position, and a Hadamard matrix
//! before quantization. Both are undone exactly, but for rounding.

use serde::{Deserialize, Serialize};

/// Which elements of a head make a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairing {
    /// Neighbours.
    Neighbours,
    /// The halves of what is rotated.
    Halves,
}

/// How keys are rotated by position (RoPE, arXiv 2104.09864).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// Which elements make a pair.
    pub pairing: Pairing,
    /// The first element of a head that is rotated.
    pub first: usize,
    /// The angle of each pair from one position to the next, in radians.
    pub angles: Vec<f64>,
}

impl Rotary {
    /// Sines and cosines for each position.
    pub(crate) fn table(&self, positions: &[i32]) -> RotaryTable<'_> {
        let mut values = Vec::with_capacity(positions.len() * self.angles.len());
        for position in positions {
            let both = self
                .angles
                .iter()
                .map(|a| (a * f64::from(*position)).sin_cos());
            values.extend(both.map(|(sin, cos)| (sin as f32, cos as f32)));
        }
        RotaryTable {
            rotary: self,
            values,
        }
    }

    /// Turns rows of one head each, one for each position, forward or back.
    pub fn turn_rows(&self, positions: &[i32], rows: &mut [f32], head: usize, is_back: bool) {
        self.table(positions).turn(rows, head, head, is_back);
    }

    fn pair(&self, i: usize) -> (usize, usize) {
        match self.pairing {
            Pairing::Neighbours => (self.first + 2 * i, self.first + 2 * i + 1),
            Pairing::Halves => (self.first + i, self.first + i + self.angles.len()),
        }
    }

    /// Whether all pairs are within a head.
    pub(crate) fn fits(&self, head: usize) -> bool {
        self.angles.iter().all(|a| a.is_finite())
            && self
                .first
                .saturating_add(self.angles.len().saturating_mul(2))
                <= head
    }
}

/// The angles of so many pairs: powers of a base, of positions that are divided by `scale`. Where YaRN stretches a context of
/// `stretched` tokens, fast pairs keep their angles. `factors` divide the angles one by one.
pub fn angles(
    pairs: usize,
    (base, scale): (f64, f64),
    stretched: Option<f64>,
    factors: Option<&[f32]>,
) -> Vec<f64> {
    let count = pairs as f64;
    // The pair that turns so often within the context.
    let turning = |turns: f64, context: f64| {
        count * (context / (turns * std::f64::consts::TAU)).ln() / base.ln()
    };
    let kept = |i: f64| {
        let Some(context) = stretched else { return 0.0 };
        // YaRN's own limits, 32 and 1 turns.
        let low = turning(32.0, context).floor().max(0.0);
        let high = turning(1.0, context).ceil().min(count - 1.0);
        1.0 - ((i - low) / (high - low).max(1e-3)).clamp(0.0, 1.0)
    };
    let of = |i: usize| {
        let angle = base.powf(-(i as f64) / count);
        let part = kept(i as f64);
        let factor = factors
            .and_then(|f| f.get(i))
            .map_or(1.0, |f| f64::from(*f));
        (angle * part + angle / scale * (1.0 - part)) / factor
    };
    (0..pairs).map(of).collect()
}

/// Rotations for some positions.
pub(crate) struct RotaryTable<'a> {
    rotary: &'a Rotary,
    values: Vec<(f32, f32)>,
}

impl RotaryTable<'_> {
    /// Turns the heads of rows, one for each position, forward or back.
    pub fn turn(&self, rows: &mut [f32], width: usize, head: usize, is_back: bool) {
        let pairs = self.rotary.angles.len();
        if pairs == 0 {
            return;
        }
        for (row, angles) in rows
            .chunks_exact_mut(width)
            .zip(self.values.chunks_exact(pairs))
        {
            for head in row.chunks_exact_mut(head) {
                for (i, (sin, cos)) in angles.iter().enumerate() {
                    let (a, b) = self.rotary.pair(i);
                    let sin = if is_back { -sin } else { *sin };
                    let (x, y) = (head[a], head[b]);
                    head[a] = x * cos - y * sin;
                    head[b] = x * sin + y * cos;
                }
            }
        }
    }
}

/// Multiplies each `size` elements by the orthonormal Walsh-Hadamard matrix, which is its own inverse.
pub(crate) fn hadamard(values: &mut [f32], size: usize) {
    if size < 2 {
        return;
    }
    let scale = 1.0 / (size as f32).sqrt();
    for block in values.chunks_exact_mut(size) {
        let mut half = 1;
        while half < size {
            for pair in block.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        block.iter_mut().for_each(|v| *v *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<f32> {
        (0..48).map(|i| (i as f32 * 0.7).sin()).collect()
    }

    fn near(a: &[f32], b: &[f32]) {
        let far = a
            .iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(far < 1e-6, "{far}");
    }

    #[test]
    fn rotations_are_undone() {
        for pairing in [Pairing::Neighbours, Pairing::Halves] {
            let rotary = Rotary {
                pairing,
                first: 2,
                angles: vec![1.0, 0.1, 0.01],
            };
            let table = rotary.table(&[0, 77]);
            let mut rows = sample();
            table.turn(&mut rows, 24, 12, false);
            near(&rows[..24], &sample()[..24]);
            assert!((rows[26] - sample()[26]).abs() > 0.01);
            assert_eq!(rows[24..26], sample()[24..26]);
            table.turn(&mut rows, 24, 12, true);
            near(&rows, &sample());
        }
    }

    #[test]
    fn neighbours_and_halves_turn_other_pairs() {
        let turned = |pairing| {
            let rotary = Rotary {
                pairing,
                first: 0,
                angles: vec![1.0, 0.0],
            };
            let mut row = [1.0, 0.0, 0.0, 0.0];
            rotary.table(&[1]).turn(&mut row, 4, 4, false);
            row
        };
        let (sin, cos) = 1f32.sin_cos();
        near(&turned(Pairing::Neighbours), &[cos, sin, 0.0, 0.0]);
        near(&turned(Pairing::Halves), &[cos, 0.0, sin, 0.0]);
    }

    #[test]
    fn angles_are_those_of_rope_and_yarn() {
        assert_eq!(angles(2, (10000.0, 1.0), None, None), [1.0, 0.01]);
        assert_eq!(
            angles(2, (10000.0, 4.0), None, Some(&[1.0, 2.0])),
            [0.25, 0.00125]
        );
        let yarn = angles(64, (1e6, 4.0), Some(32768.0), None);
        assert_eq!(yarn[0], 1.0);
        let slowest = 1e6f64.powf(-63.0 / 64.0) / 4.0;
        assert!((yarn[63] / slowest - 1.0).abs() < 1e-9);
    }

    #[test]
    fn hadamard_is_its_own_inverse() {
        let mut values = sample();
        hadamard(&mut values, 16);
        let sum: f32 = sample()[..16].iter().sum();
        assert!((values[0] - sum / 4.0).abs() < 1e-6);
        hadamard(&mut values, 16);
        near(&values, &sample());
        hadamard(&mut values, 0);
        near(&values, &sample());
    }
}
