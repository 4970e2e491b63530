//! Packs the bytes of rows so that they come back bit by bit.
//!
//! Of 16-bit floats the exponents are coded, each beside what is expected of its element; signs and the lower bits of
//! significands are as good as random and stand as they are. Other types are left to zstd.

use dwindle_formats::gguf::TensorType;

use crate::coder::{Bit, Decoder, Encoder};

/// How many classes of expected exponents there are to an exponent.
const FINE: u32 = 4;
/// How fast expectations follow: by 2 to the power of this.
const FOLLOW: u32 = 3;
/// The most steps that an exponent is from what is expected.
const FAR: usize = 12;

/// How a 16-bit float is divided: bits of the exponent, and of what stands below.
#[derive(Clone, Copy)]
struct Split {
    exponent: u32,
    below: u32,
}

fn split(ty: TensorType) -> Option<Split> {
    match ty {
        TensorType::F16 => Some(Split {
            exponent: 5,
            below: 10,
        }),
        TensorType::BF16 => Some(Split {
            exponent: 8,
            below: 7,
        }),
        _ => None,
    }
}

/// The probabilities of one class: of each distance below and above, and of the bit below the exponent.
#[derive(Clone)]
struct Class {
    is_other: Bit,
    is_above: Bit,
    further: [[Bit; FAR]; 2],
    second: [Bit; 3],
}

impl Class {
    fn new() -> Class {
        Class {
            is_other: Bit::new(0.35),
            is_above: Bit::new(0.6),
            further: [[Bit::new(0.5); FAR]; 2],
            second: [Bit::new(0.5); 3],
        }
    }
}

struct Model {
    classes: Vec<Class>,
    /// Of each element, in 64ths of an exponent.
    expected: Vec<u32>,
}

const UNIT: u32 = 64;

impl Model {
    fn new(split: Split, width: usize) -> Model {
        let most = 1 << split.exponent;
        Model {
            classes: vec![Class::new(); (most * FINE) as usize],
            expected: vec![most / 2 * UNIT; width],
        }
    }

    /// The class, and the exponent that is most probable.
    #[inline]
    fn look(&self, element: usize) -> (usize, u32) {
        let expected = self.expected[element];
        ((expected * FINE / UNIT) as usize, expected / UNIT)
    }

    #[inline]
    fn learn(&mut self, element: usize, exponent: u32) {
        let expected = &mut self.expected[element];
        // The half keeps a number between two exponents where it is.
        *expected = *expected - (*expected >> FOLLOW) + ((exponent * UNIT + UNIT / 2) >> FOLLOW);
        let most = self.classes.len() as u32 * UNIT / FINE - 1;
        *expected = (*expected).min(most);
    }
}

fn encode_floats(bytes: &[u8], width: usize, split: Split) -> Vec<u8> {
    let mut encoder = Encoder::new();
    let mut model = Model::new(split, width);
    let (values, _) = bytes.as_chunks::<2>();
    for (i, value) in values.iter().enumerate() {
        let bits = u32::from(u16::from_le_bytes(*value));
        let exponent = bits >> split.below & ((1 << split.exponent) - 1);
        let (class, expected) = model.look(i % width);
        let class = &mut model.classes[class];
        encoder.bit(&mut class.is_other, exponent != expected);
        if exponent != expected {
            let is_above = exponent > expected;
            encoder.bit(&mut class.is_above, is_above);
            let distance = exponent.abs_diff(expected) as usize - 1;
            let further = &mut class.further[usize::from(is_above)];
            for (step, bit) in further.iter_mut().enumerate().take(distance + 1) {
                encoder.bit(bit, step < distance);
            }
            if distance >= FAR {
                encoder.bits(exponent, split.exponent);
            }
        }
        let second = &mut class.second[side(exponent, expected)];
        encoder.bit(second, bits >> (split.below - 1) & 1 == 1);
        encoder.bits(bits >> 15, 1);
        encoder.bits(bits, split.below - 1);
        model.learn(i % width, exponent);
    }
    encoder.finish()
}

fn side(exponent: u32, expected: u32) -> usize {
    usize::from(exponent >= expected) + usize::from(exponent > expected)
}

fn decode_floats(bytes: &[u8], width: usize, split: Split, out: &mut [u8]) {
    let mut decoder = Decoder::new(bytes);
    let mut model = Model::new(split, width);
    let (values, _) = out.as_chunks_mut::<2>();
    let most = (1 << split.exponent) - 1;
    for (i, value) in values.iter_mut().enumerate() {
        let (class, expected) = model.look(i % width);
        let class = &mut model.classes[class];
        let mut exponent = expected;
        if decoder.bit(&mut class.is_other) {
            let is_above = decoder.bit(&mut class.is_above);
            let further = &mut class.further[usize::from(is_above)];
            let mut distance = 0;
            while distance < FAR && decoder.bit(&mut further[distance]) {
                distance += 1;
            }
            exponent = match (distance, is_above) {
                (FAR, _) => decoder.bits(split.exponent),
                // Damaged bytes may lead beyond the ends.
                (near, true) => (expected + near as u32 + 1).min(most),
                (near, false) => expected.saturating_sub(near as u32 + 1),
            };
        }
        let second = decoder.bit(&mut class.second[side(exponent, expected)]);
        let sign = decoder.bits(1);
        let rest = decoder.bits(split.below - 1);
        let bits =
            sign << 15 | exponent << split.below | u32::from(second) << (split.below - 1) | rest;
        *value = (bits as u16).to_le_bytes();
        model.learn(i % width, exponent);
    }
}

/// The most bytes that come of a packed one, so that a file's length bounds the memory that it takes.
pub(crate) const EXPANSION: usize = 1 << 15;

/// Packs rows of so many elements.
pub(crate) fn encode(ty: TensorType, bytes: &[u8], width: usize) -> std::io::Result<Vec<u8>> {
    let Some(split) = split(ty) else {
        return zstd::bulk::compress(bytes, 3);
    };
    let mut packed = encode_floats(bytes, width, split);
    // Zeros behind the end change nothing.
    packed.resize(packed.len().max(bytes.len().div_ceil(EXPANSION)), 0);
    Ok(packed)
}

/// The rows, of so many bytes; `None` where what is packed is damaged.
pub(crate) fn decode(ty: TensorType, packed: &[u8], width: usize, len: usize) -> Option<Vec<u8>> {
    if len > packed.len().saturating_mul(EXPANSION) {
        return None;
    }
    let mut out = vec![0; len];
    match split(ty) {
        Some(split) => decode_floats(packed, width, split, &mut out),
        None => {
            let found = zstd::bulk::decompress_to_buffer(packed, &mut out[..]).ok()?;
            (found == len).then_some(())?;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_bit_comes_back(values in prop::collection::vec(any::<u16>(), 0..600)) {
            let bytes: Vec<u8> = values.iter().take(values.len() / 3 * 3).flat_map(|v| v.to_le_bytes()).collect();
            for ty in [TensorType::F16, TensorType::BF16, TensorType::Q8_0] {
                let packed = encode(ty, &bytes, 3).unwrap();
                prop_assert_eq!(decode(ty, &packed, 3, bytes.len()), Some(bytes.clone()));
            }
        }

        #[test]
        fn damaged_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            for ty in [TensorType::F16, TensorType::BF16, TensorType::Q8_0] {
                let _ = decode(ty, &bytes, 3, 120);
            }
        }
    }

    #[test]
    fn floats_of_like_sizes_take_less() {
        let values = (0..40_000u32).map(|i| {
            let noise = (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 16_777_216.0 - 0.5;
            f16::from_f32(noise * if i % 4 == 0 { 8.0 } else { 0.1 })
        });
        let bytes: Vec<u8> = values.flat_map(|v| v.to_le_bytes()).collect();
        let packed = encode(TensorType::F16, &bytes, 4).unwrap();
        assert!(
            packed.len() as f64 / (bytes.len() as f64) < 0.83,
            "{}",
            packed.len()
        );
    }
}
