//! Rounding from the left to the right, each column after the errors of those before it.

use dwindle_formats::gguf::TensorType;
use faer::Mat;

use super::{Curvature, Grid, RoundingError};
use dwindle_ggml as ggml;

/// Columns that are made ready by one product; more than the longest block.
const PANEL: usize = 256;

/// Rounds all rows into `out`.
pub fn round(
    w: &[f32],
    rows: usize,
    curvature: &Curvature,
    ty: TensorType,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), RoundingError> {
    let n = curvature.n();
    let len = ty.block_len() as usize;
    let block_bytes = ty.block_bytes() as usize;
    let row_bytes = n / len * block_bytes;
    let grid = Grid::of(ty);
    let mut errors = Mat::<f32>::zeros(n, rows);
    for panel in (0..n).step_by(PANEL) {
        let width = PANEL.min(n - panel);
        // W and what the errors before the panel add, a row of W in each column.
        let mut target = curvature.carried(errors.as_ref(), panel, width);
        for i in 0..rows {
            let own = &w[i * n + panel..][..width];
            let column = target.col_as_slice_mut(i);
            column.iter_mut().zip(own).for_each(|(t, w)| *t += w);
        }
        let upper = curvature.upper_block(panel, width);
        for start in (0..width).step_by(len) {
            let mut values = Vec::with_capacity(rows * len);
            for i in 0..rows {
                values.extend_from_slice(&target.col_as_slice(i)[start..start + len]);
            }
            let mut bytes = vec![0; rows * block_bytes];
            let weights = importance.map(|v| &v[panel + start..][..len]);
            ggml::quantize(ty, &values, len, weights, &mut bytes)?;
            let mut back = vec![0f32; values.len()];
            ggml::dequantize(ty, &bytes, &mut back)?;
            for i in 0..rows {
                let bytes = &mut bytes[i * block_bytes..(i + 1) * block_bytes];
                let own = &w[i * n + panel..][..width];
                let target = target.col_as_slice_mut(i);
                let errors = &mut errors.col_as_slice_mut(i)[panel..panel + width];
                if let Some(grid) = grid {
                    let mut row = PanelRow {
                        own,
                        upper: &upper,
                        target,
                        errors,
                    };
                    row.column_by_column(grid, bytes, start);
                } else {
                    let back = &back[i * len..(i + 1) * len];
                    for (j, q) in (start..start + len).zip(back) {
                        errors[j] = own[j] - q;
                    }
                    for j in start..start + len {
                        let row = &upper[j * width + start + len..(j + 1) * width];
                        let later = target[start + len..].iter_mut().zip(row);
                        later.for_each(|(t, u)| *t += errors[j] * u);
                    }
                }
                let at = i * row_bytes + (panel + start) / len * block_bytes;
                out[at..at + block_bytes].copy_from_slice(bytes);
            }
        }
    }
    Ok(())
}

/// A row of W in a panel.
struct PanelRow<'a> {
    own: &'a [f32],
    /// How errors are carried to later columns.
    upper: &'a [f32],
    /// What the columns should be, with the errors before them.
    target: &'a mut [f32],
    errors: &'a mut [f32],
}

impl PanelRow<'_> {
    /// Rounds the block from `start` on to the grid that `bytes` has, and carries its errors to the
    /// columns behind it.
    fn column_by_column(&mut self, grid: Grid, bytes: &mut [u8], start: usize) {
        let PanelRow {
            own,
            upper,
            target,
            errors,
        } = self;
        let width = own.len();
        let mut block = grid.load(bytes);
        for element in 0..grid.len {
            let j = start + element;
            let sub = element / grid.sub_len;
            let scale = block.d * f32::from(block.scales[sub]);
            if scale != 0.0 {
                let min = block.m * f32::from(block.mins[sub]);
                block.codes[element] = grid.nearest((target[j] + min) / scale);
            }
            let error = own[j] - grid.value(&block, element);
            errors[j] = error;
            let row = &upper[j * width + j + 1..(j + 1) * width];
            let later = target[j + 1..].iter_mut().zip(row);
            later.for_each(|(t, u)| *t += error * u);
        }
        grid.store(&block, bytes);
    }
}
