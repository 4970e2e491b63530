//! An adaptive binary range coder: the arithmetic of LZMA's, with probabilities that follow at two speeds.

/// The probability that a bit is 0, in 65536ths, as two estimates of which the mean counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bit {
    fast: u16,
    slow: u16,
}

/// How fast the estimates follow: by 2 to the power of these.
const FAST: u32 = 5;
const SLOW: u32 = 8;
/// No estimate comes nearer to 0 or 1.
const LEAST: u16 = 64;

impl Bit {
    /// A bit that is 0 with this probability.
    pub fn new(zero: f64) -> Bit {
        let p = (zero * 65536.0) as u32;
        let p = p.clamp(LEAST.into(), (u16::MAX - LEAST).into()) as u16;
        Bit { fast: p, slow: p }
    }

    fn zero(self) -> u32 {
        (u32::from(self.fast) + u32::from(self.slow)) >> 1
    }

    fn learn(&mut self, bit: bool) {
        let step = |p: u16, speed: u32| match bit {
            false => p + ((u16::MAX - LEAST - p.min(u16::MAX - LEAST)) >> speed),
            true => p - ((p.max(LEAST) - LEAST) >> speed),
        };
        self.fast = step(self.fast, FAST);
        self.slow = step(self.slow, SLOW);
    }
}

/// The range is kept at least this large.
const TOP: u32 = 1 << 24;
/// The most equally probable bits that are coded at once.
const MOST_BITS: u32 = 12;

/// Writes bits.
#[derive(Debug)]
pub(crate) struct Encoder {
    low: u64,
    range: u32,
    /// The byte that waits for a carry, and how many 0xff follow it.
    waiting: u8,
    full: u64,
    is_begun: bool,
    out: Vec<u8>,
}

impl Encoder {
    pub fn new() -> Encoder {
        Encoder {
            low: 0,
            range: u32::MAX,
            waiting: 0,
            full: 0,
            is_begun: false,
            out: Vec::new(),
        }
    }

    #[inline]
    pub fn bit(&mut self, model: &mut Bit, bit: bool) {
        let bound = (self.range >> 16) * model.zero();
        if bit {
            self.low += u64::from(bound);
            self.range -= bound;
        } else {
            self.range = bound;
        }
        model.learn(bit);
        while self.range < TOP {
            self.range <<= 8;
            self.shift();
        }
    }

    /// The lowest bits of a number, all equally probable.
    #[inline]
    pub fn bits(&mut self, value: u32, count: u32) {
        if count > MOST_BITS {
            self.bits(value >> MOST_BITS, count - MOST_BITS);
        }
        let count = count.min(MOST_BITS);
        self.range >>= count;
        self.low += u64::from(value & ((1 << count) - 1)) * u64::from(self.range);
        while self.range < TOP {
            self.range <<= 8;
            self.shift();
        }
    }

    fn shift(&mut self) {
        if self.low < 0xff00_0000 || self.low > u64::from(u32::MAX) {
            let carry = (self.low >> 32) as u8;
            if self.is_begun {
                self.out.push(self.waiting.wrapping_add(carry));
            }
            for _ in 0..self.full {
                self.out.push(0xffu8.wrapping_add(carry));
            }
            self.is_begun = true;
            self.full = 0;
            self.waiting = (self.low >> 24) as u8;
        } else {
            self.full += 1;
        }
        self.low = (self.low & 0x00ff_ffff) << 8;
    }

    pub fn finish(mut self) -> Vec<u8> {
        for _ in 0..5 {
            self.shift();
        }
        // What is missing at the end is read as zeros.
        while self.out.last() == Some(&0) {
            self.out.pop();
        }
        self.out
    }
}

/// Reads bits. Behind the end of the bytes it reads zeros.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    range: u32,
    code: u32,
}

impl<'a> Decoder<'a> {
    pub fn new(bytes: &'a [u8]) -> Decoder<'a> {
        let mut decoder = Decoder {
            bytes,
            at: 0,
            range: u32::MAX,
            code: 0,
        };
        for _ in 0..4 {
            decoder.shift();
        }
        decoder
    }

    #[inline]
    fn shift(&mut self) {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        self.code = self.code << 8 | u32::from(byte);
    }

    #[inline]
    pub fn bit(&mut self, model: &mut Bit) -> bool {
        let bound = (self.range >> 16) * model.zero();
        let bit = self.code >= bound;
        if bit {
            self.code -= bound;
            self.range -= bound;
        } else {
            self.range = bound;
        }
        model.learn(bit);
        while self.range < TOP {
            self.range <<= 8;
            self.shift();
        }
        bit
    }

    #[inline]
    pub fn bits(&mut self, count: u32) -> u32 {
        let high = match count > MOST_BITS {
            true => self.bits(count - MOST_BITS) << MOST_BITS,
            false => 0,
        };
        let count = count.min(MOST_BITS);
        self.range >>= count;
        // Damaged bytes may lead beyond the last value.
        let value = (self.code / self.range).min((1 << count) - 1);
        self.code -= value * self.range;
        while self.range < TOP {
            self.range <<= 8;
            self.shift();
        }
        high | value
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_come_back(bits in prop::collection::vec((any::<bool>(), 0u32..20, 0usize..3), 0..2000)) {
            let models = [Bit::new(0.5), Bit::new(0.999), Bit::new(0.0)];
            let mut encoder = Encoder::new();
            let mut now = models;
            for (bit, count, model) in &bits {
                encoder.bit(&mut now[*model], *bit);
                encoder.bits(*count * 7, *count);
            }
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            let mut now = models;
            for (bit, count, model) in &bits {
                prop_assert_eq!(decoder.bit(&mut now[*model]), *bit);
                prop_assert_eq!(decoder.bits(*count), (*count * 7) & ((1 << count) - 1));
            }
        }
    }

    #[test]
    fn what_is_probable_takes_little() {
        let mut encoder = Encoder::new();
        let mut model = Bit::new(0.5);
        for i in 0..100_000 {
            encoder.bit(&mut model, i % 20 == 0);
        }
        // The entropy is 0.286 bits.
        let bits = encoder.finish().len() as f64 * 8.0 / 1e5;
        assert!((0.286..0.30).contains(&bits), "{bits}");
    }
}
