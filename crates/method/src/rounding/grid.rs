//! The blocks of ggml's scalar types taken apart: codes, and the scales that turn them into values.
//!
//! Every such type says `value = d · scale · level(code) − m · min`, with `d` and `m` in half
//! precision for a block, and small integers `scale` and `min` for each sub-block (or ones). The
//! layouts are those of `ggml-common.h`.

use dwindle_formats::gguf::TensorType;
use half::f16;

/// Elements of the longest block.
const MAX_BLOCK: usize = 256;

/// Sub-blocks of the block that has most.
const MAX_SUBS: usize = 16;

/// The levels of IQ4_NL and IQ4_XS (`kvalues_iq4nl`).
const NONLINEAR: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// Where the bits of an element stand.
struct Bits {
    byte: usize,
    shift: usize,
    width: usize,
}

impl Bits {
    fn get(&self, bytes: &[u8]) -> u8 {
        bytes[self.byte] >> self.shift & self.mask()
    }

    fn set(&self, bytes: &mut [u8], value: u8) {
        let byte = &mut bytes[self.byte];
        *byte = *byte & !(self.mask() << self.shift) | (value & self.mask()) << self.shift;
    }

    fn mask(&self) -> u8 {
        (0xff_u16 >> (8 - self.width)) as u8
    }
}

/// A scalar type's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// The type whose blocks these are.
    pub ty: TensorType,
    /// Elements of a block.
    pub len: usize,
    /// Elements that share a scale.
    pub sub_len: usize,
    /// The range of scales; one value where the type has none.
    pub scales: (i16, i16),
    /// The range of mins; one value where the type has none.
    pub mins: (i16, i16),
    /// The code of level 0, for types of even levels.
    zero: u8,
    /// Codes.
    count: u16,
    d_at: usize,
    m_at: Option<usize>,
}

/// A block taken apart.
#[derive(Debug, Clone)]
pub struct Block {
    /// The block's scale, a half float.
    pub d: f32,
    /// The scale of its mins, a half float; 0 where the type has none.
    pub m: f32,
    /// The scale of each sub-block.
    pub scales: [i16; MAX_SUBS],
    /// The min of each sub-block.
    pub mins: [i16; MAX_SUBS],
    /// The code of each element.
    pub codes: [u8; MAX_BLOCK],
}

impl Grid {
    /// The grid of a type; `None` for types whose codes stand for several elements at once, and for
    /// plain floats.
    pub fn of(ty: TensorType) -> Option<Grid> {
        use TensorType::*;
        // Sub-block, scales, mins, zero, codes, and the positions of d and m.
        let (sub_len, scales, mins, zero, count, d_at, m_at) = match ty {
            Q4_0 => (32, (1, 1), (0, 0), 8, 16, 0, None),
            Q4_1 => (32, (1, 1), (-1, -1), 0, 16, 0, Some(2)),
            Q5_0 => (32, (1, 1), (0, 0), 16, 32, 0, None),
            Q5_1 => (32, (1, 1), (-1, -1), 0, 32, 0, Some(2)),
            Q8_0 => (32, (1, 1), (0, 0), 128, 256, 0, None),
            IQ4_NL => (32, (1, 1), (0, 0), 0, 16, 0, None),
            Q2_K => (16, (0, 15), (0, 15), 0, 4, 80, Some(82)),
            Q3_K => (16, (-32, 31), (0, 0), 4, 8, 108, None),
            Q4_K => (32, (0, 63), (0, 63), 0, 16, 0, Some(2)),
            Q5_K => (32, (0, 63), (0, 63), 0, 32, 0, Some(2)),
            Q6_K => (16, (-128, 127), (0, 0), 32, 64, 208, None),
            IQ4_XS => (32, (-32, 31), (0, 0), 0, 16, 0, None),
            _ => return None,
        };
        Some(Grid {
            ty,
            len: ty.block_len() as usize,
            sub_len,
            scales,
            mins,
            zero,
            count,
            d_at,
            m_at,
        })
    }

    /// The type.
    pub fn ty(&self) -> TensorType {
        self.ty
    }

    /// Bytes of a block.
    pub fn bytes(&self) -> usize {
        self.ty.row_bytes(self.len as u64) as usize
    }

    /// The level of a code.
    pub fn level(&self, code: u8) -> f32 {
        match self.ty {
            TensorType::IQ4_NL | TensorType::IQ4_XS => NONLINEAR[usize::from(code)],
            _ => f32::from(i16::from(code) - i16::from(self.zero)),
        }
    }

    /// The code whose level is nearest.
    pub fn nearest(&self, level: f32) -> u8 {
        match self.ty {
            TensorType::IQ4_NL | TensorType::IQ4_XS => {
                let above = NONLINEAR.partition_point(|l| *l < level);
                match above {
                    0 => 0,
                    16 => 15,
                    i if level - NONLINEAR[i - 1] < NONLINEAR[i] - level => i as u8 - 1,
                    i => i as u8,
                }
            }
            _ => {
                let code = level.round() + f32::from(self.zero);
                code.clamp(0.0, f32::from(self.count - 1)) as u8
            }
        }
    }

    /// The value of an element.
    pub fn value(&self, block: &Block, element: usize) -> f32 {
        let sub = element / self.sub_len;
        let scale = block.d * f32::from(block.scales[sub]);
        scale * self.level(block.codes[element]) - block.m * f32::from(block.mins[sub])
    }

    /// Takes a block apart.
    pub fn load(&self, bytes: &[u8]) -> Block {
        let half = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        let mut block = Block {
            d: half(self.d_at),
            m: self.m_at.map_or(0.0, half),
            scales: [self.scales.0; MAX_SUBS],
            mins: [self.mins.0; MAX_SUBS],
            codes: [0; MAX_BLOCK],
        };
        for i in 0..self.len {
            let (low, high) = self.code_bits(i);
            block.codes[i] = low.get(bytes) | high.map_or(0, |h| h.get(bytes) << low.width);
        }
        if self.ty == TensorType::Q8_0 {
            // Its codes are signed bytes.
            block.codes[..self.len].iter_mut().for_each(|c| *c ^= 0x80);
        }
        for sub in 0..self.len / self.sub_len {
            if self.scales.0 != self.scales.1 {
                let raw = joined(&self.scale_bits(sub), bytes);
                block.scales[sub] = match self.ty {
                    TensorType::Q6_K => i16::from(raw as i8),
                    _ => i16::from(raw) + self.scales.0,
                };
            }
            if self.mins.0 != self.mins.1 {
                block.mins[sub] = i16::from(joined(&self.min_bits(sub), bytes));
            }
        }
        block
    }

    /// Puts a block together.
    pub fn store(&self, block: &Block, bytes: &mut [u8]) {
        let mut half = |at: usize, v: f32| {
            bytes[at..at + 2].copy_from_slice(&f16::from_f32(v).to_le_bytes());
        };
        half(self.d_at, block.d);
        if let Some(at) = self.m_at {
            half(at, block.m);
        }
        let flip = if self.ty == TensorType::Q8_0 { 0x80 } else { 0 };
        for (i, code) in block.codes[..self.len].iter().enumerate() {
            let (low, high) = self.code_bits(i);
            low.set(bytes, code ^ flip);
            if let Some(high) = high {
                high.set(bytes, code >> low.width);
            }
        }
        for sub in 0..self.len / self.sub_len {
            if self.scales.0 != self.scales.1 {
                let raw = match self.ty {
                    TensorType::Q6_K => block.scales[sub] as u8,
                    _ => (block.scales[sub] - self.scales.0) as u8,
                };
                split(&self.scale_bits(sub), bytes, raw);
            }
            if self.mins.0 != self.mins.1 {
                split(&self.min_bits(sub), bytes, block.mins[sub] as u8);
            }
        }
    }

    /// The low and the high bits of a code.
    fn code_bits(&self, i: usize) -> (Bits, Option<Bits>) {
        use TensorType::*;
        let at = |byte, shift, width| Bits { byte, shift, width };
        let halves = |base: usize| at(base + i % 16, 4 * (i % 32 / 16), 4);
        let quarters = |base: usize| at(base + i / 128 * 32 + i % 32, 2 * (i % 128 / 32), 2);
        let pairs = |base: usize| at(base + i / 64 * 32 + i % 32, 4 * (i / 32 % 2), 4);
        match self.ty {
            Q4_0 | IQ4_NL => (halves(2), None),
            Q4_1 => (halves(4), None),
            Q5_0 => (halves(6), Some(at(2 + i / 8, i % 8, 1))),
            Q5_1 => (halves(8), Some(at(4 + i / 8, i % 8, 1))),
            Q2_K => (quarters(16), None),
            Q3_K => (quarters(32), Some(at(i % 32, i / 32, 1))),
            Q4_K => (pairs(16), None),
            Q5_K => (pairs(48), Some(at(16 + i % 32, i / 32, 1))),
            Q6_K => {
                let quarter = i % 128 / 32;
                let low = i / 128 * 64 + i % 32 + 32 * (quarter % 2);
                let high = 128 + i / 128 * 32 + i % 32;
                (
                    at(low, 4 * (quarter / 2), 4),
                    Some(at(high, 2 * quarter, 2)),
                )
            }
            IQ4_XS => {
                let bits = halves(8);
                (at(bits.byte + i / 32 * 16, bits.shift, 4), None)
            }
            // Whole bytes.
            _ => (at(2 + i, 0, 8), None),
        }
    }

    /// The bits of a sub-block's scale, the low ones first.
    fn scale_bits(&self, sub: usize) -> [Bits; 2] {
        use TensorType::*;
        let at = |byte, shift, width| Bits { byte, shift, width };
        let none = Bits {
            byte: 0,
            shift: 0,
            width: 0,
        };
        match self.ty {
            Q2_K => [at(sub, 0, 4), none],
            Q3_K => [
                at(96 + sub % 8, 4 * (sub / 8), 4),
                at(104 + sub % 4, 2 * (sub / 4), 2),
            ],
            Q4_K | Q5_K if sub < 4 => [at(4 + sub, 0, 6), none],
            Q4_K | Q5_K => [at(8 + sub, 0, 4), at(sub, 6, 2)],
            IQ4_XS => [
                at(4 + sub / 2, 4 * (sub % 2), 4),
                at(2 + sub / 4, 2 * (sub % 4), 2),
            ],
            _ => [at(192 + sub, 0, 8), none],
        }
    }

    /// The bits of a sub-block's min, the low ones first.
    fn min_bits(&self, sub: usize) -> [Bits; 2] {
        let at = |byte, shift, width| Bits { byte, shift, width };
        match self.ty {
            TensorType::Q2_K => [at(sub, 4, 4), at(0, 0, 0)],
            _ if sub < 4 => [at(8 + sub, 0, 6), at(0, 0, 0)],
            _ => [at(8 + sub, 4, 4), at(4 + sub, 6, 2)],
        }
    }
}

fn joined([low, high]: &[Bits; 2], bytes: &[u8]) -> u8 {
    match high.width {
        0 => low.get(bytes),
        _ => low.get(bytes) | high.get(bytes) << low.width,
    }
}

fn split([low, high]: &[Bits; 2], bytes: &mut [u8], value: u8) {
    low.set(bytes, value);
    if high.width > 0 {
        high.set(bytes, value >> low.width);
    }
}
