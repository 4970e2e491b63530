//! Reads a packed state: its records' places at once, their payloads when they are asked for.

use std::ops::Range;

use sha2::{Digest as _, Sha256};

use super::{
    DIGEST, END, MAGIC, MAX_CELLS, MAX_EXPANSION, MAX_SETTINGS, PackedError, Place, Record, VERSION,
};
use crate::state::{Section, State, described};

/// A packed state whose header and records' places are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed<'a> {
    bytes: &'a [u8],
    /// The codec's settings.
    pub settings: &'a [u8],
    /// What [`describe`](crate::state::describe) said of the state.
    pub description: Vec<u8>,
    /// The state.
    pub state: State,
    /// The records: of each stream of attention, all cells in order.
    pub records: Vec<Record>,
}

impl<'a> Packed<'a> {
    /// Reads the header and finds the records.
    ///
    /// # Errors
    /// [`PackedError`]: it is another file, is damaged, or lacks cells.
    pub fn read(bytes: &'a [u8]) -> Result<Packed<'a>, PackedError> {
        let mut walk = Walk { bytes, at: 0 };
        if walk.take(4)? != MAGIC {
            return Err(PackedError::Magic);
        }
        let found = walk.u32()?;
        if found != VERSION {
            return Err(PackedError::Version { found });
        }
        let (settings, packed) = (walk.u32()? as usize, walk.u32()? as usize);
        let unpacked = walk.u64()?;
        if settings > MAX_SETTINGS {
            return Err(PackedError::Damaged {
                what: "the length of the settings",
            });
        }
        let (settings, packed) = (walk.take(settings)?, walk.take(packed)?);
        walk.check(0, || "the header".into())?;
        let description = expanded(packed, unpacked)?;
        let (state, _) = described(&description)?;
        let records = records(&mut walk, &state)?;
        Ok(Packed {
            bytes,
            settings,
            description,
            state,
            records,
        })
    }

    /// The first byte of a record's payload, whether or not it is what was written.
    pub fn first_byte(&self, record: &Record) -> Option<u8> {
        self.bytes[record.range.clone()].first().copied()
    }

    /// The payload of a record, once its checksum was held against it.
    ///
    /// # Errors
    /// The checksum differs.
    pub fn payload(&self, record: &Record) -> Result<&'a [u8], PackedError> {
        let mut walk = Walk {
            bytes: self.bytes,
            at: record.range.end,
        };
        let Place { first, cells, .. } = record.place;
        let begin = record.range.start - RECORD_HEAD;
        walk.check(begin, || format!("cells {first} to {}", first + cells))?;
        Ok(&self.bytes[record.range.clone()])
    }
}

/// Bytes before a record's payload.
const RECORD_HEAD: usize = 20;

fn expanded(packed: &[u8], len: u64) -> Result<Vec<u8>, PackedError> {
    let what = "the description";
    // Memory grows with what the bytes give, and to no more than they justify.
    if len > (packed.len() as u64).saturating_mul(MAX_EXPANSION) {
        return Err(PackedError::Damaged { what });
    }
    match zstd::bulk::decompress(packed, len as usize) {
        Ok(bytes) if bytes.len() as u64 == len => Ok(bytes),
        _ => Err(PackedError::Damaged { what }),
    }
}

/// All records, and nothing behind them: every cell of every stream, in order.
fn records(walk: &mut Walk<'_>, state: &State) -> Result<Vec<Record>, PackedError> {
    let mut records = Vec::new();
    for (s, section) in state.sections.iter().enumerate() {
        let Section::Attention(attention) = section else {
            continue;
        };
        for (t, stream) in attention.streams.iter().enumerate() {
            let (mut next, count) = (0u32, stream.positions.len() as u32);
            while next < count {
                let record = walk.record()?;
                let Place {
                    section,
                    stream,
                    first,
                    cells,
                } = record.place;
                let fits = (section as usize, stream as usize, first) == (s, t, next);
                if !fits || cells == 0 || cells > MAX_CELLS.min(count - next) {
                    return Err(PackedError::Damaged {
                        what: "the order of the records",
                    });
                }
                next += cells;
                records.push(record);
            }
        }
    }
    let begin = walk.at;
    let (mark, count) = (walk.u32()?, walk.u64()?);
    walk.check(begin, || "the end".into())?;
    match mark == END && count == records.len() as u64 && walk.at == walk.bytes.len() {
        true => Ok(records),
        false => Err(PackedError::Damaged { what: "the end" }),
    }
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], PackedError> {
        let short = PackedError::Short {
            at: self.bytes.len(),
        };
        let taken = self.bytes[self.at..].get(..bytes).ok_or(short)?;
        self.at += bytes;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, PackedError> {
        let mut out = [0; 4];
        out.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(out))
    }

    fn u64(&mut self) -> Result<u64, PackedError> {
        let mut out = [0; 8];
        out.copy_from_slice(self.take(8)?);
        Ok(u64::from_le_bytes(out))
    }

    /// The checksum that stands here is that of everything from `begin` on.
    fn check(&mut self, begin: usize, what: impl Fn() -> String) -> Result<(), PackedError> {
        let hashed: Range<usize> = begin..self.at;
        let digest = self.take(DIGEST)?;
        match Sha256::digest(&self.bytes[hashed])[..] == *digest {
            true => Ok(()),
            false => Err(PackedError::Checksum { what: what() }),
        }
    }

    /// The place of a record, whose payload is passed.
    fn record(&mut self) -> Result<Record, PackedError> {
        let place = Place {
            section: self.u32()?,
            stream: self.u32()?,
            first: self.u32()?,
            cells: self.u32()?,
        };
        let len = self.u32()? as usize;
        let begin = self.at;
        self.take(len)?;
        let range = begin..self.at;
        self.take(DIGEST)?;
        Ok(Record { place, range })
    }
}
