//! Codes tables of small numbers, most of them 0, whose columns have different sizes: coefficients after a transform and
//! a uniform step.
//!
//! Each number's bits are coded with probabilities that depend on how large the numbers of its column have been, and on how
//! large the numbers before it in its row are beside what their columns would have led to expect.

use crate::coder::{Bit, Decoder, Encoder};

/// Expected sizes are kept in units of this part of a step.
const ONE: u32 = 256;
/// How fast they follow what is seen: by 2 to the power of this.
const FOLLOW: u32 = 3;
/// Classes of expected sizes: four to each power of two.
const SIZES: usize = 88;
/// Classes of rows: how large they are beside what was expected.
const LOUDNESS: usize = 5;
/// The longest number, in bits.
const MAX_BITS: usize = 20;
/// No number is larger.
pub(crate) const LARGEST: i32 = (1 << MAX_BITS) - 1;

/// The probabilities of one class.
#[derive(Debug, Clone)]
struct Class {
    /// Whether a number has more bits than so many.
    longer: [Bit; MAX_BITS],
    /// The bit below the highest, of numbers of so many bits.
    second: [Bit; MAX_BITS],
}

impl Class {
    /// As if sizes fell geometrically from 0 on, with this mean.
    fn new(mean: f64) -> Class {
        let more = mean / (1.0 + mean);
        let mut longer = [Bit::new(0.5); MAX_BITS];
        let mut power = more;
        for (bits, bit) in longer.iter_mut().enumerate() {
            // From 2^(b-1) up to 2^b there are 2^(b-1) steps, and one from 0 to 1.
            *bit = Bit::new(1.0 - power);
            if bits > 0 {
                power *= power;
            }
        }
        Class {
            longer,
            second: [Bit::new(0.55); MAX_BITS],
        }
    }
}

struct Model {
    classes: Vec<Class>,
    dead: Bit,
    /// Of each column, what size is expected.
    expected: Vec<u32>,
    /// Recent sizes of the row, and what was expected of them.
    seen: u32,
    hoped: u32,
}

impl Model {
    fn new(expected: &[u32]) -> Model {
        let class = |i: usize| Class::new(centre(i / LOUDNESS));
        Model {
            classes: (0..SIZES * LOUDNESS).map(class).collect(),
            dead: Bit::new(0.9),
            expected: expected.to_vec(),
            seen: 0,
            hoped: 0,
        }
    }

    fn begin_row(&mut self) {
        (self.seen, self.hoped) = (0, 0);
    }

    #[inline]
    fn class(&self, column: usize) -> usize {
        let size = size_class(self.expected[column]);
        // Ratios of 1/2, 4/5, 5/4 and 2.
        let (seen, hoped) = (u64::from(self.seen + ONE), u64::from(self.hoped + ONE));
        let loudness = usize::from(seen * 2 > hoped)
            + usize::from(seen * 5 > hoped * 4)
            + usize::from(seen * 4 > hoped * 5)
            + usize::from(seen > hoped * 2);
        size * LOUDNESS + loudness
    }

    #[inline]
    fn learn(&mut self, column: usize, size: u32) {
        let size = size * ONE;
        let expected = &mut self.expected[column];
        self.seen = self.seen - (self.seen >> 4) + (size.min(1 << 26) >> 4);
        self.hoped = self.hoped - (self.hoped >> 4) + (*expected >> 4);
        *expected = *expected - (*expected >> FOLLOW) + (size >> FOLLOW);
    }
}

/// Quarters of powers of two.
#[inline]
fn size_class(expected: u32) -> usize {
    let e = expected + 4;
    let log = 31 - e.leading_zeros();
    let quarter = e >> (log - 2) & 3;
    (((log - 2) * 4 + quarter) as usize).min(SIZES - 1)
}

/// The middle of a class, in steps.
fn centre(class: usize) -> f64 {
    let low = (4 + class % 4) as f64 * f64::from(1u32 << (class / 4)) - 4.0;
    (low + f64::from(1u32 << (class / 4)) / 2.0) / f64::from(ONE)
}

/// The size to expect of numbers that a step makes of values with this standard deviation, counted in steps.
pub(crate) fn expected(deviation: f32) -> u32 {
    // Of exact operations only, so that every machine gets the same.
    let r = f64::from(deviation.clamp(0.0, LARGEST as f32));
    let near = r * r / (r * r + 0.3);
    (0.75 * r * near * near * f64::from(ONE)) as u32
}

/// Codes rows of numbers. `expected` has an entry for each column.
pub(crate) fn encode(rows: &[i32], expected: &[u32]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    let width = expected.len();
    let mut model = Model::new(expected);
    let alive = |column: &usize| rows.iter().skip(*column).step_by(width).any(|n| *n != 0);
    let flags: Vec<bool> = (0..width).map(|column| alive(&column)).collect();
    for flag in &flags {
        encoder.bit(&mut model.dead, *flag);
    }
    let columns: Vec<usize> = (0..width).filter(|c| flags[*c]).collect();
    for row in rows.chunks_exact(width) {
        model.begin_row();
        for column in &columns {
            let number = row[*column].clamp(-LARGEST, LARGEST);
            let class = model.class(*column);
            let size = number.unsigned_abs();
            encode_size(&mut encoder, &mut model.classes[class], size);
            if size > 0 {
                encoder.bits(u32::from(number < 0), 1);
            }
            model.learn(*column, size);
        }
    }
    encoder.finish()
}

#[inline]
fn encode_size(encoder: &mut Encoder, class: &mut Class, size: u32) {
    let bits = (32 - size.leading_zeros()) as usize;
    for (i, longer) in class.longer.iter_mut().enumerate().take(bits + 1) {
        encoder.bit(longer, i < bits);
    }
    if bits >= 2 {
        encoder.bit(&mut class.second[bits - 1], size >> (bits - 2) & 1 == 1);
        encoder.bits(size, bits as u32 - 2);
    }
}

/// As many rows as `out` has, of which numbers in dead columns are 0.
pub(crate) fn decode(bytes: &[u8], expected: &[u32], out: &mut [i32]) {
    let mut decoder = Decoder::new(bytes);
    let width = expected.len();
    let mut model = Model::new(expected);
    let flags: Vec<bool> = (0..width).map(|_| decoder.bit(&mut model.dead)).collect();
    let columns: Vec<usize> = (0..width).filter(|c| flags[*c]).collect();
    for row in out.chunks_exact_mut(width) {
        row.fill(0);
        model.begin_row();
        for column in &columns {
            let class = model.class(*column);
            let size = decode_size(&mut decoder, &mut model.classes[class]);
            let is_negative = size > 0 && decoder.bits(1) == 1;
            row[*column] = if is_negative {
                -(size as i32)
            } else {
                size as i32
            };
            model.learn(*column, size);
        }
    }
}

#[inline]
fn decode_size(decoder: &mut Decoder<'_>, class: &mut Class) -> u32 {
    let mut bits = 0;
    while bits < MAX_BITS && decoder.bit(&mut class.longer[bits]) {
        bits += 1;
    }
    match bits {
        0 | 1 => bits as u32,
        _ => {
            let second = u32::from(decoder.bit(&mut class.second[bits - 1]));
            let rest = decoder.bits(bits as u32 - 2);
            (2 | second) << (bits - 2) | rest
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(
            rows in prop::collection::vec(prop::collection::vec(-2000i32..2000, 7), 0..50),
            expected in prop::collection::vec(0u32..1 << 28, 7),
        ) {
            let rows: Vec<i32> = rows.concat();
            let bytes = encode(&rows, &expected);
            let mut out = vec![1; rows.len()];
            decode(&bytes, &expected, &mut out);
            prop_assert_eq!(out, rows);
        }

        #[test]
        fn damaged_bytes_give_some_numbers(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut out = vec![0; 70];
            decode(&bytes, &[0; 7], &mut out);
            prop_assert!(out.iter().all(|n| n.abs() <= LARGEST));
        }
    }

    #[test]
    fn the_largest_numbers_come_back() {
        let rows = [LARGEST, -LARGEST, 0, 1];
        let mut out = [0; 4];
        decode(&encode(&rows, &[0, 0]), &[0, 0], &mut out);
        assert_eq!(out, rows);
    }

    #[test]
    fn classes_are_in_order() {
        for e in [0u32, 1, 7, 100, 255, 256, 5000, 1 << 20] {
            let class = size_class(e);
            let (low, high) = (centre(class.saturating_sub(1)), centre(class + 1));
            let size = f64::from(e) / f64::from(ONE);
            assert!(
                size <= high && (class == 0 || size >= low),
                "{e}: {low} {high}"
            );
        }
    }

    #[test]
    fn laplacian_numbers_take_little_more_than_their_entropy() {
        use rand::{RngExt as _, SeedableRng as _};
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let (rows, width) = (256, 600);
        let mut numbers = Vec::new();
        let mut entropy = 0.0;
        // Geometric on both sides of 0.
        let rho = |c: usize| 0.9 / (1.0 + c as f64 / 60.0);
        for _ in 0..rows {
            for c in 0..width {
                let r = rho(c);
                let mut size = 0;
                while random.random::<f64>() < r {
                    size += 1;
                }
                entropy -= if size == 0 {
                    (1.0 - r).log2()
                } else {
                    ((1.0 - r) * r.powi(size)).log2() - 1.0
                };
                numbers.push(if random.random() { size } else { -size });
            }
        }
        let means: Vec<u32> = (0..width)
            .map(|c| (rho(c) / (1.0 - rho(c)) * 256.0) as u32)
            .collect();
        let bits = encode(&numbers, &means).len() as f64 * 8.0;
        assert!(bits < entropy * 1.035, "{}", bits / entropy);
    }
}
