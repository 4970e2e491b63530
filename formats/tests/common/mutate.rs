//! Seeded damage to a header.

use rand::{Rng, RngExt};

/// Values at which counts, lengths and offsets go wrong.
const EXTREMES: [u64; 14] = [
    0,
    1,
    2,
    31,
    33,
    0x7f,
    0xff,
    0xffff,
    1 << 20,
    1 << 28,
    u32::MAX as u64,
    1 << 32,
    i64::MAX as u64,
    u64::MAX,
];

/// Changes the first `header` bytes of a file in one to three ways.
pub fn mutate(rng: &mut impl Rng, bytes: &mut Vec<u8>, header: usize) {
    for _ in 0..rng.random_range(1..=3) {
        let end = header.min(bytes.len());
        if end < 32 {
            return;
        }
        let at = rng.random_range(0..end - 8);
        match rng.random_range(0..10) {
            0 => bytes[at] = rng.random(),
            1 => bytes[at] ^= 1 << rng.random_range(0..8),
            2 | 3 => extreme(rng, &mut bytes[at..at + 8]),
            4 | 5 => digit(rng, &mut bytes[at..end]),
            6 => splice(rng, bytes, at, end),
            7 => drop(bytes.drain(at..at + rng.random_range(1..8))),
            8 => {
                let new: [u8; 8] = rng.random();
                let count = rng.random_range(1..=8);
                bytes.splice(at..at, new[..count].iter().copied());
            }
            _ => bytes.truncate(at.max(end / 2)),
        }
    }
}

/// An integer field of one, four or eight bytes at one of its extremes, or near it.
fn extreme(rng: &mut impl Rng, field: &mut [u8]) {
    let value = EXTREMES[rng.random_range(0..EXTREMES.len())];
    let value = value.wrapping_add(rng.random_range(0..3)).wrapping_sub(1);
    let width = [1, 4, 8][rng.random_range(0..3)];
    field[..width].copy_from_slice(&value.to_le_bytes()[..width]);
}

/// Another digit for the next one there is, most likely in the plan's JSON.
fn digit(rng: &mut impl Rng, bytes: &mut [u8]) {
    if let Some(digit) = bytes.iter_mut().find(|b| b.is_ascii_digit()) {
        *digit = b'0' + rng.random_range(0..10);
    }
}

/// Bytes from elsewhere in the header over these.
fn splice(rng: &mut impl Rng, bytes: &mut [u8], at: usize, end: usize) {
    let from = rng.random_range(0..end);
    let len = rng.random_range(1..64).min(end - from).min(end - at);
    bytes.copy_within(from..from + len, at);
}
