//! One tensor's values on their way from the source into the file.

use std::borrow::Cow;
use std::ops::Range;

use dwindle_formats::gguf::TensorType;

use crate::architecture::{ModelTensor, values};
use crate::checkpoint::Source;
use crate::ggml::{self, GgmlError};
use crate::plan::TransformError;
use crate::statistics::Importance;

/// Sums of squares from which a tensor's relative error follows.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ErrorSums {
    /// Of the differences.
    pub error: f64,
    /// Of the source's values.
    pub signal: f64,
}

impl ErrorSums {
    /// Adds the sums of another piece.
    pub fn add(&mut self, other: ErrorSums) {
        self.error += other.error;
        self.signal += other.signal;
    }

    /// ‖W−Ŵ‖/‖W‖; zero when nothing was lost, NaN when W is zero and something was.
    pub fn relative(&self) -> f32 {
        if self.error == 0.0 {
            return 0.0;
        }
        (self.error / self.signal).sqrt() as f32
    }

    /// The sums over a piece and its approximation.
    pub fn of(values: &[f32], approximation: &[f32]) -> ErrorSums {
        // Lanes that are summed apart let the compiler use SIMD; blocks keep f32 sums short.
        const LANES: usize = 16;
        let mut total = ErrorSums::default();
        for (v, a) in values.chunks(4096).zip(approximation.chunks(4096)) {
            let mut error = [0f32; LANES];
            let mut signal = [0f32; LANES];
            for (v, a) in v.chunks(LANES).zip(a.chunks(LANES)) {
                for i in 0..v.len() {
                    let d = v[i] - a[i];
                    error[i] += d * d;
                    signal[i] += v[i] * v[i];
                }
            }
            total.error += error.iter().map(|v| f64::from(*v)).sum::<f64>();
            total.signal += signal.iter().map(|v| f64::from(*v)).sum::<f64>();
        }
        total
    }
}

/// Rows of a tensor in an element type, with what the change of type cost.
pub fn store_rows<'a>(
    tensor: &'a ModelTensor,
    source: &'a dyn Source,
    ty: TensorType,
    rows: Range<u64>,
    importance: Option<&Importance>,
) -> Result<(Cow<'a, [u8]>, ErrorSums), TransformError> {
    let from = tensor.source_type(source);
    if from == ty {
        return Ok((tensor.rows(source, rows), ErrorSums::default()));
    }
    let values = values(tensor, source, rows.clone())?;
    let bytes = encode(ty, &values, tensor, rows, importance)?;
    if ty == TensorType::F32 {
        return Ok((bytes.into(), ErrorSums::default()));
    }
    let mut back = vec![0f32; values.len()];
    ggml::dequantize(ty, &bytes, &mut back)?;
    Ok((bytes.into(), ErrorSums::of(&values, &back)))
}

/// Quantizes rows, slice by slice of a stack, each with its own importance weights.
pub(super) fn encode(
    ty: TensorType,
    values: &[f32],
    tensor: &ModelTensor,
    rows: Range<u64>,
    importance: Option<&Importance>,
) -> Result<Vec<u8>, GgmlError> {
    let row_len = tensor.shape[0] as usize;
    let row_bytes = ty.row_bytes(tensor.row_len()) as usize;
    let mut out = vec![0; (rows.end - rows.start) as usize * row_bytes];
    let per_slice = tensor.rows_per_slice();
    let mut row = rows.start;
    while row < rows.end {
        let slice = row / per_slice;
        let end = ((slice + 1) * per_slice).min(rows.end);
        let at = (row - rows.start) as usize..(end - rows.start) as usize;
        let weights = importance.and_then(|i| i.columns(&tensor.name, row_len, slice as usize));
        ggml::quantize(
            ty,
            &values[at.start * row_len..at.end * row_len],
            row_len,
            weights,
            &mut out[at.start * row_bytes..at.end * row_bytes],
        )
        .map_err(|e| e.after(row as usize * row_len))?;
        row = end;
    }
    Ok(out)
}

/// Values in an element type, and as they come back from it.
pub(super) fn round_trip(
    ty: TensorType,
    values: &[f32],
    row_len: usize,
) -> Result<(Vec<u8>, Vec<f32>), GgmlError> {
    let bytes = ggml::quantized(ty, values, row_len, None)?;
    let mut back = vec![0f32; values.len()];
    ggml::dequantize(ty, &bytes, &mut back)?;
    Ok((bytes, back))
}
