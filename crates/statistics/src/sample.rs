//! A few values of each weight, which distinguish models with equal norms.

use std::fmt;

use dwindle_formats::gguf::TensorType;
use sha2::{Digest as _, Sha256};

/// Values of a sample.
const VALUES: usize = 8;

/// From this distance on, relative to their length, samples have nothing to do with one another.
/// Quantization comes nowhere near it; two samples of independent weights are at 1.4.
const FAR: f64 = 1.0;

/// Values of a weight, and the type that they were read from.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    ty: TensorType,
    values: Vec<f32>,
}

/// Where a weight is sampled: a function of its name and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The row.
    pub row: u64,
    /// Its first element.
    start: usize,
}

impl Place {
    /// The place in a weight with this many rows of this length.
    pub fn of(name: &str, row_len: u64, rows: u64) -> Place {
        let hash = Sha256::digest(name);
        let number = |at: usize| {
            let bytes = hash[at..at + 8].iter();
            bytes.fold(0u64, |n, b| n << 8 | u64::from(*b))
        };
        let starts = (row_len + 1).saturating_sub(VALUES as u64).max(1);
        Place {
            row: number(0) % rows.max(1),
            start: (number(8) % starts) as usize,
        }
    }

    /// The sample out of its row.
    pub fn sample(&self, ty: TensorType, row: &[f32]) -> Sample {
        let end = (self.start + VALUES).min(row.len());
        Sample {
            ty,
            values: row.get(self.start..end).unwrap_or_default().to_vec(),
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.ty.name())?;
        let values = self.values.iter();
        values
            .map(|v| v.to_bits())
            .try_for_each(|v| write!(f, "{v:08x}"))
    }
}

impl Sample {
    /// Reads what was written; `None` where it makes no sense.
    pub fn parse(text: &str) -> Option<Sample> {
        let (ty, digits) = text.split_once(' ')?;
        let (words, rest) = digits.as_bytes().as_chunks::<8>();
        let value = |word: &[u8; 8]| {
            let bits = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
            Some(f32::from_bits(bits))
        };
        Some(Sample {
            ty: ty.parse().ok().filter(|_| rest.is_empty())?,
            values: words.iter().map(value).collect::<Option<_>>()?,
        })
    }

    /// What a value may be away from the original that was rounded to it.
    fn tolerance(&self, value: f32) -> f32 {
        match self.ty {
            TensorType::BF16 => value.abs() / 256.0,
            // The second part is half a step of its smallest numbers.
            TensorType::F16 => value.abs() / 2048.0 + 2f32.powi(-25),
            _ => 0.0,
        }
    }
}

/// How far samples of two models are from one another.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Distance {
    /// Samples that were compared.
    pub count: usize,
    /// Of the quantized ones, the squares of differences and of values.
    squares: (f64, f64),
}

impl Distance {
    /// Compares a weight's samples. Says whether they can be of the same weight.
    pub fn add(&mut self, a: &Sample, b: &Sample) -> bool {
        if a.values.len() != b.values.len() {
            return false;
        }
        self.count += 1;
        let mut pairs = a.values.iter().copied().zip(b.values.iter().copied());
        if a.ty.is_quantized() || b.ty.is_quantized() {
            for (x, y) in pairs {
                let (x, y) = (f64::from(x), f64::from(y));
                self.squares.0 += (x - y).powi(2);
                self.squares.1 += x.powi(2).max(y.powi(2));
            }
            // All of a quantized model together says something, eight values do not.
            return true;
        }
        if a.ty == b.ty {
            return pairs.all(|(x, y)| x.to_bits() == y.to_bits());
        }
        pairs.all(|(x, y)| (x - y).abs() <= a.tolerance(x) + b.tolerance(y))
    }

    /// Whether quantized weights are those of some other model.
    pub fn is_far(&self) -> bool {
        self.squares.0 > FAR * FAR * self.squares.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ty: TensorType, values: &[f32]) -> Sample {
        let values = values.to_vec();
        Sample { ty, values }
    }

    #[test]
    fn a_sample_is_read_as_it_was_written() {
        let all = sample(TensorType::Q4_K, &[1.0, -0.0, f32::MIN_POSITIVE]);
        assert_eq!(Sample::parse(&all.to_string()), Some(all));
        for bad in ["", "F16", "F99 00000000", "F16 0000", "F16 zzzzzzzz"] {
            assert_eq!(Sample::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn places_lie_within_the_weight() {
        for (row_len, rows) in [(1, 1), (7, 3), (8, 1), (9, 2), (4096, 11008)] {
            for name in ["a", "b", "blk.0.attn_q.weight"] {
                let place = Place::of(name, row_len, rows);
                assert!(place.row < rows);
                let row = vec![1.0; row_len as usize];
                let sample = place.sample(TensorType::F32, &row);
                assert_eq!(sample.values.len(), row.len().min(VALUES));
            }
        }
    }

    #[test]
    fn conversions_are_the_same_and_small_changes_are_not() {
        let values: Vec<f32> = (1..9).map(|i| 0.013 * (i as f32).powi(3)).collect();
        let original = sample(TensorType::F32, &values);
        let as_bf16 = |scale: f32| -> Vec<f32> {
            let round = |v: &f32| half::bf16::from_f32(v * scale).to_f32();
            values.iter().map(round).collect()
        };
        let as_f16 = |v: &f32| half::f16::from_f32(*v).to_f32();
        let halves: Vec<f32> = values.iter().map(as_f16).collect();
        let bf16 = sample(TensorType::BF16, &as_bf16(1.0));
        let f16 = sample(TensorType::F16, &halves);
        let tuned = sample(TensorType::BF16, &as_bf16(1.01));
        let is_same = |a: &Sample, b: &Sample| Distance::default().add(a, b);
        assert!(is_same(&original, &bf16) && is_same(&f16, &original));
        assert!(is_same(&f16, &bf16) && is_same(&bf16, &bf16));
        for other in [&original, &bf16, &f16] {
            assert!(!is_same(other, &tuned), "{other}");
        }
    }

    #[test]
    fn of_quantized_weights_all_together_count() {
        let own = sample(TensorType::Q4_0, &[1.0, 2.0, 3.0]);
        let near = sample(TensorType::F16, &[1.1, 1.9, 3.2]);
        let far = sample(TensorType::F16, &[-1.0, 2.0, -3.0]);
        let mut distance = Distance::default();
        assert!(distance.add(&own, &near) && !distance.is_far());
        assert!(distance.add(&own, &far) && distance.is_far());
    }
}
