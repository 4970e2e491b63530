//! A model tensor's elements as floats.

use std::ops::Range;

use super::ModelTensor;
use dwindle_checkpoint::Source;
use dwindle_ggml::{self as ggml, GgmlError};

/// Rows of a model tensor as floats, whatever type the source has.
///
/// # Errors
/// When ggml can't read the source's type as floats.
pub fn values(
    tensor: &ModelTensor,
    source: &dyn Source,
    rows: Range<u64>,
) -> Result<Vec<f32>, GgmlError> {
    let mut out = vec![0f32; ((rows.end - rows.start) * tensor.shape[0]) as usize];
    ggml::dequantize(
        tensor.source_type(source),
        &tensor.rows(source, rows),
        &mut out,
    )?;
    Ok(out)
}
