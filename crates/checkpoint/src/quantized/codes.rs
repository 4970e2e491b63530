//! Where the code of each element lies, and what number it stands for.

/// How the codes of a matrix of `rows` and `columns` lie in its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// A byte each, row after row.
    Bytes,
    /// Two in a byte, row after row, the first in the low half.
    LowFirst,
    /// Two in a byte, row after row, the first in the high half (bitsandbytes).
    HighFirst,
    /// A stream of some bits along each row, which begins with a word of 32 (compressed-tensors).
    Along { bits: usize },
    /// A stream of some bits down a column of words, a column for each row (GPTQ).
    Down { bits: usize },
    /// Eight of 4 bits in a word, which holds those of eight rows in AWQ's order; a line of words for each
    /// column.
    Across,
}

/// Where in a word AWQ puts each of eight rows.
const ACROSS: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Words of 32 bits that a stream of `len` codes takes.
pub(super) fn words(bits: usize, len: usize) -> usize {
    (len * bits).div_ceil(32)
}

impl Packing {
    /// Reads the codes of a row.
    ///
    /// `rows` is the number of rows of the whole matrix; `out` has an element for each column.
    pub(super) fn row(self, bytes: &[u8], rows: usize, row: usize, out: &mut [u8]) {
        let columns = out.len();
        match self {
            Packing::Bytes => out.copy_from_slice(&bytes[row * columns..][..columns]),
            Packing::LowFirst | Packing::HighFirst => {
                let low = usize::from(self == Packing::HighFirst);
                for (column, code) in out.iter_mut().enumerate() {
                    let at = row * columns + column;
                    let shift = if at % 2 == low { 0 } else { 4 };
                    *code = bytes[at / 2] >> shift & 15;
                }
            }
            Packing::Along { bits } => {
                let lane = row * words(bits, columns);
                for (column, code) in out.iter_mut().enumerate() {
                    *code = streamed(bytes, 1, lane, column, bits);
                }
            }
            Packing::Down { bits } => {
                for (column, code) in out.iter_mut().enumerate() {
                    *code = streamed(bytes, rows, row, column, bits);
                }
            }
            Packing::Across => {
                let (words, shift) = (rows / 8, 4 * ACROSS[row % 8]);
                for (column, code) in out.iter_mut().enumerate() {
                    *code = (word(bytes, column * words + row / 8) >> shift & 15) as u8;
                }
            }
        }
    }
}

/// The code at `index` of a stream of codes of some bits, little-endian in words, the first of which is word
/// `lane`, and the next `stride` words further.
pub(super) fn streamed(bytes: &[u8], stride: usize, lane: usize, index: usize, bits: usize) -> u8 {
    let (first, shift) = (index * bits / 32, index * bits % 32);
    let low = word(bytes, first * stride + lane) >> shift;
    let over = (shift + bits).saturating_sub(32);
    let high = match over {
        0 => 0,
        _ => word(bytes, (first + 1) * stride + lane) << (bits - over),
    };
    ((low | high) & mask(bits)) as u8
}

/// The code of a row in a line of AWQ's words.
pub(super) fn across(bytes: &[u8], words: usize, line: usize, row: usize) -> u8 {
    (word(bytes, line * words + row / 8) >> (4 * ACROSS[row % 8]) & 15) as u8
}

pub(super) fn word(bytes: &[u8], index: usize) -> u32 {
    let at = &bytes[4 * index..4 * index + 4];
    u32::from_le_bytes([at[0], at[1], at[2], at[3]])
}

fn mask(bits: usize) -> u32 {
    (1 << bits) - 1
}

/// What each code stands for.
pub(super) type Levels = [f32; 256];

/// The integers from 0 of codes without a sign, less what stands for zero.
pub(super) fn unsigned(zero: u8) -> Levels {
    std::array::from_fn(|code| code as f32 - f32::from(zero))
}

/// Integers in two's complement.
pub(super) fn signed() -> Levels {
    std::array::from_fn(|code| f32::from(code as u8 as i8))
}

/// A float of 8 bits with a sign, some bits of exponent, and the rest mantissa, as the OCP 8-bit
/// floating-point specification has E4M3 (without infinities) and E5M2.
pub(super) fn float8(exponent_bits: u32) -> Levels {
    let mantissa_bits = 7 - exponent_bits;
    let bias = (1 << (exponent_bits - 1)) - 1;
    std::array::from_fn(|code| {
        let code = code as i32;
        let exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1);
        let fraction = code & ((1 << mantissa_bits) - 1);
        let scale = 2f32.powi(-(mantissa_bits as i32));
        let size = match exponent {
            _ if exponent_bits == 4 && code & 127 == 127 => f32::NAN,
            31 if exponent_bits == 5 && fraction == 0 => f32::INFINITY,
            31 if exponent_bits == 5 => f32::NAN,
            0 => fraction as f32 * scale * 2f32.powi(1 - bias),
            _ => (1.0 + fraction as f32 * scale) * 2f32.powi(exponent - bias),
        };
        if code & 128 == 0 { size } else { -size }
    })
}

/// E2M1, the 4-bit float of OCP's microscaling formats and of NVFP4.
pub(super) fn float4() -> Levels {
    const SIZES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    std::array::from_fn(|code| match code & 8 {
        0 => SIZES[code & 7],
        _ => -SIZES[code & 7],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_of_eight_bits_are_those_of_the_specification() {
        let e4m3 = float8(4);
        assert_eq!(
            [e4m3[0], e4m3[1], e4m3[8], e4m3[0x38], e4m3[0x7e]],
            [0.0, 2f32.powi(-9), 2f32.powi(-6), 1.0, 448.0]
        );
        assert!(e4m3[0x7f].is_nan() && e4m3[0xff].is_nan());
        let e5m2 = float8(5);
        assert_eq!(
            [e5m2[1], e5m2[4], e5m2[0x3c], e5m2[0x7b], e5m2[0xfc]],
            [
                2f32.powi(-16),
                2f32.powi(-14),
                1.0,
                57344.0,
                f32::NEG_INFINITY
            ]
        );
    }

    #[test]
    fn three_bits_cross_words_in_a_stream() {
        let codes: Vec<u8> = (0..32).map(|i| (i * 5 % 8) as u8).collect();
        // Two rows: each has three words, of which one of the other row stands between.
        let mut bits = [0u128; 2];
        for (i, code) in codes.iter().enumerate() {
            bits[0] |= u128::from(*code) << (3 * i);
            bits[1] |= u128::from(7 - *code) << (3 * i);
        }
        let mut bytes = Vec::new();
        for word in 0..3 {
            for row in bits {
                bytes.extend_from_slice(&((row >> (32 * word)) as u32).to_le_bytes());
            }
        }
        let mut out = [0; 32];
        Packing::Down { bits: 3 }.row(&bytes, 2, 0, &mut out);
        assert_eq!(out.to_vec(), codes);
        Packing::Down { bits: 3 }.row(&bytes, 2, 1, &mut out);
        assert_eq!(
            out.to_vec(),
            codes.iter().map(|c| 7 - c).collect::<Vec<_>>()
        );
    }

    #[test]
    fn awq_takes_even_rows_first() {
        // One column of eight rows whose codes are their numbers: nibbles 0, 2, 4, 6, 1, 3, 5, 7.
        let word = [0u32, 2, 4, 6, 1, 3, 5, 7];
        let word = (0..8).fold(0, |all, i| all | word[i] << (4 * i));
        for row in 0..8 {
            let mut out = [0];
            Packing::Across.row(&word.to_le_bytes(), 8, row, &mut out);
            assert_eq!(usize::from(out[0]), row);
        }
    }

    #[test]
    fn halves_of_bytes_come_in_either_order() {
        let bytes = [0x21, 0x43, 0x65];
        let mut out = [0; 3];
        Packing::LowFirst.row(&bytes, 2, 0, &mut out);
        assert_eq!(out, [1, 2, 3]);
        Packing::LowFirst.row(&bytes, 2, 1, &mut out);
        assert_eq!(out, [4, 5, 6]);
        Packing::HighFirst.row(&bytes, 2, 0, &mut out);
        assert_eq!(out, [2, 1, 4]);
    }
}
