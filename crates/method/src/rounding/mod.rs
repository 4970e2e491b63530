//! Rounding to a quantized type so that the layer's *output* is nearest, and not the weights: the
//! codes and scales are chosen against the whole Gram of the layer's input. The bytes are those of
//! any other tensor of the type, and stock llama.cpp decodes them.
//!
//! With E = W − Ŵ the output's error is trace(E·G·Eᵀ). With G = U·D·Uᵀ, U unit upper triangular, it is
//! Σ Dⱼ·((E·U)ⱼ)²: going through the columns from the left, each is rounded after the errors of those
//! before it, weighted by U, have been added (LDLQ of QuIP, Chee and others, 2023; the same as GPTQ,
//! Frantar and others, 2023). Where ggml's blocks are made of scales and codes of single elements
//! (`grid.rs`), scales are searched by ggml for each block as the errors have left it, and coordinate
//! descent goes on from there: every code, scale and min in turn to its optimum while
//! all others stay. Where a code stands for several elements, whole blocks are rounded by ggml and
//! the errors go from block to block.
//!
//! A row of such a type for which that finds nothing better keeps ggml's own rounding.

mod curvature;
mod descent;
mod feedback;
pub mod grid;

pub use curvature::{Curvature, Curvatures, DAMPING};
use grid::{Block, Grid};

use std::ops::Range;

use dwindle_formats::gguf::TensorType;
use faer::Mat;

use super::error::{MethodError, check_weights};
use dwindle_ggml::{self as ggml, GgmlError};

/// Rounds of coordinate descent over all blocks.
const ROUNDS: usize = 2;

/// Why weights can't be rounded.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum RoundingError {
    /// ggml can't write the type, or not these values.
    #[error(transparent)]
    Ggml(#[from] GgmlError),
    /// Weights that are not finite or not of the Gram's width.
    #[error(transparent)]
    Method(#[from] MethodError),
}

/// Bytes of W, `rows` rows of n elements, in a quantized type, such that trace(E·G·Eᵀ) is small.
/// `importance` has a weight for each column, with which ggml searches scales and without which it
/// writes some types not at all. Rows don't depend on one another.
///
/// # Errors
/// [`RoundingError`].
pub fn round(
    w: &[f32],
    rows: usize,
    curvature: &Curvature,
    ty: TensorType,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>, RoundingError> {
    let n = curvature.n();
    check_weights(w, &[rows, n])?;
    let row_bytes = ty.row_bytes(n as u64) as usize;
    let mut fitted = vec![0; rows * row_bytes];
    feedback::round(w, rows, curvature, ty, importance, &mut fitted)?;
    if let Some(grid) = Grid::of(ty) {
        for _ in 0..ROUNDS {
            descent::round(w, rows, curvature, grid, &mut fitted)?;
        }
        return Ok(fitted);
    }
    let mut nearest = vec![0; rows * row_bytes];
    ggml::quantize(ty, w, n, importance, &mut nearest)?;
    let before = errors(w, rows, curvature, ty, &nearest)?;
    let after = errors(w, rows, curvature, ty, &fitted)?;
    for (i, (before, after)) in before.iter().zip(&after).enumerate() {
        // Not a number compares as false.
        if after < before {
            continue;
        }
        let row = i * row_bytes..(i + 1) * row_bytes;
        fitted[row.clone()].copy_from_slice(&nearest[row]);
    }
    Ok(fitted)
}

/// As [`round`], for an input that is taken in blocks: the columns of W in each range are rounded for
/// its curvature, as if those of other ranges were uncorrelated. Ranges follow one another from 0 to n
/// and cut no block of the type.
///
/// # Errors
/// [`RoundingError`].
pub fn round_in_blocks(
    w: &[f32],
    rows: usize,
    curvatures: &[(Range<usize>, Curvature)],
    ty: TensorType,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>, RoundingError> {
    if let [(_, curvature)] = curvatures {
        return round(w, rows, curvature, ty, importance);
    }
    let n = curvatures.last().map_or(0, |(columns, _)| columns.end);
    check_weights(w, &[rows, n])?;
    let row_bytes = ty.row_bytes(n as u64) as usize;
    let mut out = vec![0; rows * row_bytes];
    for (columns, curvature) in curvatures {
        let own: Vec<f32> = w
            .chunks_exact(n)
            .flat_map(|row| &row[columns.clone()])
            .copied()
            .collect();
        let importance = importance.map(|v| &v[columns.clone()]);
        let bytes = round(&own, rows, curvature, ty, importance)?;
        let (start, len) = (
            ty.row_bytes(columns.start as u64) as usize,
            ty.row_bytes(columns.len() as u64) as usize,
        );
        for (out, bytes) in out.chunks_exact_mut(row_bytes).zip(bytes.chunks_exact(len)) {
            out[start..start + len].copy_from_slice(bytes);
        }
    }
    Ok(out)
}

/// The output error of each row of an approximation in a quantized type.
///
/// # Errors
/// Bytes of another length.
pub fn errors(
    w: &[f32],
    rows: usize,
    curvature: &Curvature,
    ty: TensorType,
    bytes: &[u8],
) -> Result<Vec<f64>, RoundingError> {
    Ok(curvature.energies(&differences(w, rows, curvature.n(), ty, bytes)?))
}

/// W − Ŵ, a row of W in each column.
fn differences(
    w: &[f32],
    rows: usize,
    n: usize,
    ty: TensorType,
    bytes: &[u8],
) -> Result<Mat<f32>, RoundingError> {
    let mut back = vec![0f32; w.len()];
    ggml::dequantize(ty, bytes, &mut back)?;
    Ok(Mat::from_fn(n, rows, |j, i| w[i * n + j] - back[i * n + j]))
}
