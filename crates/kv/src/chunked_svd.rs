//! Packs cells as the leading singular triples of each layer's keys and values: the low-rank form that other programs use.
//! It knows nothing of the model, and loses more than the transform at the same bytes.

use faer::{Mat, MatRef};
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

/// Both factors in 8 bits, each row with its scale, behind their rank. Gives the sum of ranks, too.
pub(crate) fn encode(cells: &Cells, ranks: &Ranks) -> Result<(Vec<u8>, usize), KvError> {
    let mut out = Vec::new();
    let mut sum = 0;
    let count = cells.positions.len();
    for (rows, part) in [(&cells.keys, ranks.keys), (&cells.values, ranks.values)] {
        for rows in rows {
            let width = rows.len() / count.max(1);
            let most = ((width as f64 * part).round() as usize).clamp(1, width.min(count).max(1));
            sum += encode_layer(rows, (count, width), most, ranks.energy, &mut out)?;
        }
    }
    Ok((out, sum))
}

fn encode_layer(
    rows: &[f32],
    (count, width): (usize, usize),
    most: usize,
    energy: f64,
    out: &mut Vec<u8>,
) -> Result<usize, KvError> {
    let matrix = MatRef::from_row_major_slice(rows, count, width);
    let svd = matrix
        .thin_svd()
        .map_err(|_| dwindle_method::error::MethodError::NoConvergence)?;
    let values: Vec<f64> = (0..count.min(width))
        .map(|i| f64::from(svd.S()[i]))
        .collect();
    let all: f64 = values.iter().map(|s| s * s).sum();
    let mut kept = 0.0;
    let enough = values.iter().position(|s| {
        kept += s * s;
        kept >= energy * all
    });
    let rank = enough.map_or(most, |i| i + 1).min(most);
    out.extend((rank as u32).to_le_bytes());
    // The singular values go to both sides, so that rows of both are of one size.
    for (r, value) in values.iter().enumerate().take(rank) {
        let root = value.sqrt() as f32;
        let left: Vec<f32> = (0..count).map(|i| svd.U()[(i, r)] * root).collect();
        let right: Vec<f32> = (0..width).map(|i| svd.V()[(i, r)] * root).collect();
        for side in [left, right] {
            let largest = side.iter().fold(0f32, |m, v| m.max(v.abs()));
            let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
            out.extend(scale.to_le_bytes());
            out.extend(side.iter().map(|v| (v / scale).round() as i8 as u8));
        }
    }
    Ok(rank)
}

/// The rows of a layer, and what follows them; `None` where the bytes are damaged.
fn decode_layer(bytes: &[u8], (count, width): (usize, usize)) -> Option<(Vec<f32>, &[u8])> {
    let (rank, mut rest) = bytes.split_first_chunk::<4>()?;
    let rank = u32::from_le_bytes(*rank) as usize;
    let is_justified = count * width <= bytes.len().saturating_mul(EXPANSION);
    if rank > count.min(width) || !is_justified {
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
    let (mut left, mut right) = (Mat::zeros(count, rank), Mat::zeros(width, rank));
    for r in 0..rank {
        left.col_as_slice_mut(r).copy_from_slice(&side(count)?);
        right.col_as_slice_mut(r).copy_from_slice(&side(width)?);
    }
    // Rows of a product are the columns of the other product.
    let product: Mat<f32> = right * left.transpose();
    let rows = (0..count).flat_map(|i| product.col_as_slice(i).to_vec());
    Some((rows.collect(), rest))
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
        let (bytes, sum) = encode(&cells, &ranks).unwrap();
        assert_eq!(sum, 6);
        let back = decode(&bytes, &cells.positions, (&[6], &[6, 6])).unwrap();
        for (a, b) in back.values[1].iter().zip(&low) {
            assert!((a - b).abs() < 0.2, "{a} {b}");
        }
        for end in 0..bytes.len() {
            assert!(decode(&bytes[..end], &cells.positions, (&[6], &[6, 6])).is_none());
        }
    }
}
