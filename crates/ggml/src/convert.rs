//! Quantizes rows of floats and reads them back.
//!
//! ggml answers wrong arguments with an assertion that ends the process, so everything it asserts
//! is checked here first and refused with a typed error. Floats of 32 and 16 bits are converted
//! here; blocks are converted by the installed [`Library`](crate::Library).

use std::borrow::Cow;

use dwindle_formats::gguf::TensorType;
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

use crate::library::library;

/// The largest magnitude that is handed to a block-quantized type.
///
/// Their scales are 16-bit floats, so that far smaller values already fail; the cap keeps squares
/// and sums inside of ggml finite, which its search for the best grid point relies on.
pub const MAX_MAGNITUDE: f32 = 1e10;

/// The least magnitude that becomes infinite in F16: half way from the largest number to the next.
const F16_OVERFLOW: f32 = 65520.0;

/// The same in BF16: 255 and a half of its steps below 2^128.
const BF16_OVERFLOW: f32 = f32::from_bits(0x7f7f_8000);

/// Why values can't be turned into an element type, or bytes of that type into values.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum GgmlError {
    #[error("ggml can't quantize to type `{0}`")]
    NotWritable(TensorType),
    #[error("ggml can't read type `{0}` as floats")]
    NotReadable(TensorType),
    #[error("a row of {row_len} elements does not divide into blocks of {block_len} (`{ty}`)")]
    RowLength {
        ty: TensorType,
        row_len: usize,
        block_len: u64,
    },
    #[error("{what} has {found} elements, expected {expected}")]
    Length {
        what: &'static str,
        found: usize,
        expected: usize,
    },
    #[error("element {index} is {value}, {}", unheld(*ty, *value))]
    Value {
        ty: TensorType,
        index: usize,
        value: f32,
    },
    #[error("importance weight {index} is {value}, expected a finite number that is not negative")]
    Importance { index: usize, value: f32 },
    #[error(
        "`{0}` needs importance weights: run with calibration statistics or choose another type"
    )]
    ImportanceMissing(TensorType),
    #[error(
        "the values are too large for the 16-bit scales of `{0}`, which it can't hold; choose `bf16` for the tensor"
    )]
    ScaleOverflow(TensorType),
    #[error("type `{0}` is converted by ggml, which is not linked into this program")]
    NotLinked(TensorType),
}

impl GgmlError {
    /// The same of values of which so many come before.
    #[must_use]
    pub fn after(self, elements: usize) -> GgmlError {
        match self {
            GgmlError::Value { ty, index, value } => GgmlError::Value {
                ty,
                index: index + elements,
                value,
            },
            other => other,
        }
    }
}

/// Why a type can't hold a value, and what to do.
fn unheld(ty: TensorType, value: f32) -> String {
    if !value.is_finite() {
        return "no finite number; the checkpoint is damaged".into();
    }
    let wider = match ty {
        TensorType::BF16 => "f32",
        _ => "bf16",
    };
    format!("which `{ty}` can't hold; choose `{wider}` for the tensor")
}

/// Whether [`quantize`] writes this type.
pub fn writable(ty: TensorType) -> bool {
    use TensorType::*;
    match ty {
        Q8_1 | Q8_K | I8 | I16 | I32 | I64 | F64 => false,
        F32 | F16 | BF16 => true,
        _ => ty.is_quantized(),
    }
}

/// Whether [`dequantize`] reads this type.
pub fn readable(ty: TensorType) -> bool {
    use TensorType::*;
    match ty {
        F32 | F16 | BF16 => true,
        Q8_1 | Q8_K => false,
        _ => ty.is_quantized(),
    }
}

/// Whether ggml refuses to write this type without importance weights.
pub fn requires_importance(ty: TensorType) -> bool {
    use TensorType::*;
    matches!(ty, IQ1_S | IQ2_XXS | IQ2_XS)
}

/// Rows of values in an element type, as [`quantize`] writes them.
///
/// # Errors
/// As [`quantize`].
pub fn quantized(
    ty: TensorType,
    values: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>, GgmlError> {
    let rows = values.len().checked_div(row_len).unwrap_or(0);
    let mut out = vec![0; rows * ty.row_bytes(row_len as u64) as usize];
    quantize(ty, values, row_len, importance, &mut out)?;
    Ok(out)
}

/// Writes rows of values in an element type.
///
/// `values` are whole rows of `row_len`; `importance` has one weight per column, the same for every
/// row (slices of experts are separate calls). `out` must have exactly the size of the result.
/// Rows are independent, so cutting a tensor into calls of whole rows gives the same bytes.
///
/// # Errors
/// Wrong lengths, a type that can't be written, missing weights for a type that needs them, and,
/// save for F32, values that are not finite or would not be in the type.
pub fn quantize(
    ty: TensorType,
    values: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), GgmlError> {
    if !writable(ty) {
        return Err(GgmlError::NotWritable(ty));
    }
    let rows = check_rows(ty, values.len(), row_len, out.len())?;
    if rows == 0 {
        return Ok(());
    }
    match ty {
        TensorType::F32 => out.copy_from_slice(bytemuck::cast_slice(values)),
        TensorType::BF16 => {
            check_values(ty, values, |v| v.is_finite() && v.abs() < BF16_OVERFLOW)?;
            narrow(values, out, |v| to_bf16(v.to_bits()));
        }
        TensorType::F16 => {
            check_values(ty, values, |v| v.abs() < F16_OVERFLOW)?;
            write_f16(values, out);
        }
        _ => {
            check_values(ty, values, |v| v.abs() <= MAX_MAGNITUDE)?;
            if let Some(weights) = importance {
                check_importance(weights, row_len)?;
            } else if requires_importance(ty) {
                return Err(GgmlError::ImportanceMissing(ty));
            }
            quantize_blocks(ty, values, row_len, importance, out)?;
        }
    }
    Ok(())
}

fn quantize_blocks(
    ty: TensorType,
    values: &[f32],
    row_len: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), GgmlError> {
    let library = library().ok_or(GgmlError::NotLinked(ty))?;
    let mut aligned = Aligned::for_writing(out);
    let valid = library.quantize(ty, values, row_len, importance, aligned.bytes());
    aligned.finish();
    if valid {
        Ok(())
    } else {
        Err(GgmlError::ScaleOverflow(ty))
    }
}

/// Reads bytes of an element type as floats. `out` must have exactly as many elements.
///
/// # Errors
/// Wrong lengths and types that are not floats.
pub fn dequantize(ty: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<(), GgmlError> {
    if !readable(ty) {
        return Err(GgmlError::NotReadable(ty));
    }
    check_rows(ty, out.len(), out.len(), bytes.len())?;
    if out.is_empty() {
        return Ok(());
    }
    match ty {
        TensorType::F32 => {
            bytemuck::cast_slice_mut::<f32, u8>(out).copy_from_slice(bytes);
        }
        TensorType::BF16 => {
            for (v, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *v = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        }
        TensorType::F16 => read_f16(bytes, out),
        _ => {
            let library = library().ok_or(GgmlError::NotLinked(ty))?;
            library.dequantize(ty, &align_for_reading(bytes), out);
        }
    }
    Ok(())
}

/// Rows in `values` elements, after holding all lengths against each other.
fn check_rows(
    ty: TensorType,
    values: usize,
    row_len: usize,
    bytes: usize,
) -> Result<usize, GgmlError> {
    let whole = |n: u64| (row_len as u64).is_multiple_of(n);
    if (row_len == 0 && values != 0) || !whole(ty.block_len()) {
        return Err(GgmlError::RowLength {
            ty,
            row_len,
            block_len: ty.block_len(),
        });
    }
    if row_len == 0 {
        return expect_len("the result", bytes, 0).map(|()| 0);
    }
    let rows = values / row_len;
    expect_len("the last row", values % row_len, 0)?;
    let size = ty.bytes(&[row_len as u64, rows as u64]).unwrap_or(u64::MAX);
    expect_len("the byte buffer", bytes, size as usize)?;
    Ok(rows)
}

fn expect_len(what: &'static str, found: usize, expected: usize) -> Result<(), GgmlError> {
    if found == expected {
        return Ok(());
    }
    Err(GgmlError::Length {
        what,
        found,
        expected,
    })
}

/// Refuses values that are not good. What is not a number must not be.
fn check_values(
    ty: TensorType,
    values: &[f32],
    is_good: impl Fn(f32) -> bool,
) -> Result<(), GgmlError> {
    let good = |v: &f32| is_good(*v);
    // The inner fold has no early exit, so that it compiles to vector instructions.
    for (chunk, part) in values.chunks(4096).enumerate() {
        if part.iter().fold(true, |ok, v| ok & good(v)) {
            continue;
        }
        let at = part.iter().position(|v| !good(v)).unwrap_or(0);
        return Err(GgmlError::Value {
            ty,
            index: chunk * 4096 + at,
            value: part[at],
        });
    }
    Ok(())
}

fn check_importance(weights: &[f32], row_len: usize) -> Result<(), GgmlError> {
    expect_len("the importance row", weights.len(), row_len)?;
    match weights
        .iter()
        .position(|w| !(*w >= 0.0 && *w <= MAX_MAGNITUDE))
    {
        None => Ok(()),
        Some(index) => Err(GgmlError::Importance {
            index,
            value: weights[index],
        }),
    }
}

/// Round to nearest even, the way ggml and every converter do.
fn to_bf16(bits: u32) -> u16 {
    if bits & 0x7fff_ffff > 0x7f80_0000 {
        return (bits >> 16) as u16 | 64; // keep it a NaN, and make it quiet
    }
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

fn narrow(values: &[f32], out: &mut [u8], convert: impl Fn(f32) -> u16) {
    for (v, b) in values.iter().zip(out.as_chunks_mut::<2>().0) {
        *b = convert(*v).to_le_bytes();
    }
}

/// Elements converted at a time where bytes are not aligned; fits the first-level cache.
const PIECE: usize = 4096;

fn write_f16(values: &[f32], out: &mut [u8]) {
    let convert = |values: &[f32], halves: &mut [u16]| {
        let halves: &mut [f16] = halves.reinterpret_cast_mut();
        halves.convert_from_f32_slice(values);
    };
    if let Ok(halves) = bytemuck::try_cast_slice_mut(out) {
        return convert(values, halves);
    }
    let mut piece = [0u16; PIECE];
    for (v, o) in values.chunks(PIECE).zip(out.chunks_mut(2 * PIECE)) {
        convert(v, &mut piece[..v.len()]);
        o.copy_from_slice(bytemuck::cast_slice(&piece[..v.len()]));
    }
}

fn read_f16(bytes: &[u8], out: &mut [f32]) {
    let convert = |halves: &[u16], out: &mut [f32]| {
        let halves: &[f16] = halves.reinterpret_cast();
        halves.convert_to_f32_slice(out);
    };
    if let Ok(halves) = bytemuck::try_cast_slice(bytes) {
        return convert(halves, out);
    }
    let mut piece = [0u16; PIECE];
    for (b, o) in bytes.chunks(2 * PIECE).zip(out.chunks_mut(PIECE)) {
        bytemuck::cast_slice_mut::<u16, u8>(&mut piece[..o.len()]).copy_from_slice(b);
        convert(&piece[..o.len()], o);
    }
}

/// Blocks contain 16- and 32-bit numbers, which C code accesses as such.
const BLOCK_ALIGN: usize = 4;

fn align_for_reading(bytes: &[u8]) -> Cow<'_, [u8]> {
    if bytes.as_ptr().align_offset(BLOCK_ALIGN) == 0 {
        return Cow::Borrowed(bytes);
    }
    // An allocation of bytes is aligned to at least 8 by every allocator that Rust uses; if one
    // day it is not, the processors that ggml runs on still read it correctly.
    Cow::Owned(bytes.to_vec())
}

/// A destination, replaced by an aligned buffer if it is not aligned itself.
struct Aligned<'a> {
    out: &'a mut [u8],
    copy: Option<Vec<u32>>,
}

impl<'a> Aligned<'a> {
    fn for_writing(out: &'a mut [u8]) -> Aligned<'a> {
        let copy = (out.as_ptr().align_offset(BLOCK_ALIGN) != 0)
            .then(|| vec![0u32; out.len().div_ceil(4)]);
        Aligned { out, copy }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let len = self.out.len();
        match &mut self.copy {
            Some(copy) => &mut bytemuck::cast_slice_mut(copy)[..len],
            None => self.out,
        }
    }

    fn finish(self) {
        if let Some(copy) = &self.copy {
            let len = self.out.len();
            self.out.copy_from_slice(&bytemuck::cast_slice(copy)[..len]);
        }
    }
}
