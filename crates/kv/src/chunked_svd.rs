//! Packs cells as the leading singular triples of each layer's keys and values: the low-rank form that other programs use.
//! It knows nothing of the model, and loses more than the transform at the same bytes.

use dwindle_method::svd::{decompose, multiply_out};
use serde::{Deserialize, Serialize};

use crate::cells::Cells;
use crate::error::KvError;
use crate::lossless::EXPANSION;

/// Which ranks are kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ranks {
    /// The largest rank of keys, in parts of a layer's width.
    pub keys: f64,
    /// The same of values.
    pub values: f64,
    /// The least part of the sum of squares to keep; ranks grow no further once it is.
    pub energy: f64,
}

impl Ranks {
    /// Rank 128 of keys and so many of values in layers of 1024 elements, in others in proportion.
    pub fn level(values: f64) -> Ranks {
        Ranks {
            keys: 128.0 / 1024.0,
            values: values / 1024.0,
            energy: 1.0,
        }
    }
}

/// Both factors in 8 bits, each row with its scale, behind their rank.
pub(crate) fn encode(cells: &Cells, ranks: &Ranks) -> Result<Vec<u8>, KvError> {
    let mut out = Vec::new();
    let count = cells.positions.len();
    for (rows, part) in [(&cells.keys, ranks.keys), (&cells.values, ranks.values)] {
        for rows in rows {
            let width = rows.len() / count.max(1);
            let most = ((width as f64 * part).round() as usize).clamp(1, width.min(count).max(1));
            encode_layer(rows, (count, width), most, ranks.energy, &mut out)?;
        }
    }
    Ok(out)
}

fn encode_layer(
    rows: &[f32],
    (count, width): (usize, usize),
    most: usize,
    energy: f64,
    out: &mut Vec<u8>,
) -> Result<(), KvError> {
    let no_convergence = |_| dwindle_method::error::MethodError::NoConvergence;
    let svd = decompose(rows, count, width).map_err(no_convergence)?;
    let rank = (svd.rank_of_energy(energy) as usize).min(most);
    // The singular values go to both sides, so that numbers of both are of one size.
    let factors = svd.factors(rows, count, width, rank);
    out.extend((rank as u32).to_le_bytes());
    for r in 0..rank {
        let left: Vec<f32> = factors.b.iter().skip(r).step_by(rank).copied().collect();
        let right = &factors.a[r * width..(r + 1) * width];
        for side in [&left[..], right] {
            let largest = side.iter().fold(0f32, |m, v| m.max(v.abs()));
            let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            out.extend(scale.to_le_bytes());
            out.extend(side.iter().map(|v| (v / scale).round() as i8 as u8));
        }
    }
    Ok(())
}

/// The rows of a layer, and what follows them; `None` where the bytes are damaged.
fn decode_layer(bytes: &[u8], (count, width): (usize, usize)) -> Option<(Vec<f32>, &[u8])> {
    let (rank, mut rest) = bytes.split_first_chunk::<4>()?;
    let rank = u32::from_le_bytes(*rank) as usize;
    let needed = rank.checked_mul(count.checked_add(width)?.checked_add(8)?)?;
    let is_justified = count * width * 2 <= bytes.len().saturating_mul(EXPANSION);
    if rank > count.min(width) || needed > rest.len() || !is_justified {
        return None;
    }
    let mut side = |len: usize| {
        let (scale, codes) = rest.split_first_chunk::<4>()?;
        let scale = Some(f32::from_le_bytes(*scale)).filter(|s| s.is_finite())?;
        let (codes, more) = codes.split_at_checked(len)?;
        rest = more;
        let values = codes.iter().map(|c| f32::from(c.cast_signed()) * scale);
        Some(values.collect::<Vec<f32>>())
    };
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for _ in 0..rank {
        left.extend(side(count)?);
        right.extend(side(width)?);
    }
    let by_cell: Vec<f32> = (0..count)
        .flat_map(|i| left[i..].iter().step_by(count))
        .copied()
        .collect();
    Some((multiply_out(&right, &by_cell, width, count, rank), rest))
}

/// Rows of keys and values of these widths; `None` where the bytes are damaged.
pub(crate) fn decode(
    payload: &[u8],
    positions: &[i32],
    (keys, values): (&[usize], &[usize]),
) -> Option<Cells> {
    let mut cells = Cells {
        positions: positions.to_vec(),
        ..Cells::default()
    };
    let mut rest = payload;
    for (widths, out) in [(keys, &mut cells.keys), (values, &mut cells.values)] {
        for width in widths {
            let (rows, more) = decode_layer(rest, (positions.len(), *width))?;
            out.push(rows);
            rest = more;
        }
    }
    rest.is_empty().then_some(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_low_rank_come_back_with_8_bits() {
        let row = |i: usize| (0..6).map(move |j| ((i * j) as f32 * 0.3).sin() + 0.1);
        let low: Vec<f32> = (0..8)
            .flat_map(|i| row(i % 2).map(move |v| v * (1.0 + i as f32)))
            .collect();
        let cells = Cells {
            positions: (0..8).collect(),
            before: 0,
            after: 0,
            keys: vec![low.clone()],
            values: vec![low.clone(), low.clone()],
        };
        let ranks = Ranks {
            keys: 0.5,
            values: 1.0,
            energy: 0.999_999,
        };
        let bytes = encode(&cells, &ranks).unwrap();
        // Ranks of two, and their sides with scales.
        assert_eq!(bytes.len(), 3 * (4 + 2 * (8 + 8 + 6)));
        let back = decode(&bytes, &cells.positions, (&[6], &[6, 6])).unwrap();
        for (a, b) in back.values[1].iter().zip(&low) {
            assert!((a - b).abs() < 0.2, "{a} {b}");
        }
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end], &cells.positions, (&[6], &[6, 6])).is_none());
        }
    }
}
