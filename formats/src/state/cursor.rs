//! Walks through bytes that nobody vouches for.

use super::StateError;

/// A place in bytes that nobody vouches for, and of which only pieces may be there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'p, 'a> {
    /// In the order of their places, without overlap.
    pieces: &'p [(usize, &'a [u8])],
    len: usize,
    pub at: usize,
}

impl<'p, 'a> Cursor<'p, 'a> {
    pub fn new(pieces: &'p [(usize, &'a [u8])], len: usize) -> Cursor<'p, 'a> {
        Cursor { pieces, len, at: 0 }
    }

    pub fn left(&self) -> u64 {
        (self.len - self.at) as u64
    }

    /// The bytes from here on that are there.
    fn here(&self) -> &'a [u8] {
        let after = self.pieces.partition_point(|(begin, _)| *begin <= self.at);
        let piece = after.checked_sub(1).map(|i| self.pieces[i]);
        piece
            .and_then(|(begin, bytes)| bytes.get(self.at - begin..))
            .unwrap_or_default()
    }

    /// Whether so many bytes come, of which none may be missing.
    pub fn present(&self, what: &'static str, needed: u64) -> Result<(), StateError> {
        let left = self.here().len() as u64;
        match needed <= left {
            true => Ok(()),
            false => Err(StateError::Short { what, needed, left }),
        }
    }

    /// Passes bytes that are there or not.
    pub fn skip(&mut self, what: &'static str, bytes: u64) -> Result<(), StateError> {
        let left = self.left();
        if bytes > left {
            let needed = bytes;
            return Err(StateError::Short { what, needed, left });
        }
        self.at += bytes as usize;
        Ok(())
    }

    pub fn take(&mut self, what: &'static str, bytes: usize) -> Result<&'a [u8], StateError> {
        self.present(what, bytes as u64)?;
        let taken = &self.here()[..bytes];
        self.at += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], StateError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(what, N)?);
        Ok(out)
    }

    pub fn u32(&mut self, what: &'static str) -> Result<u32, StateError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn i32(&mut self, what: &'static str) -> Result<i32, StateError> {
        self.array(what).map(i32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &'static str) -> Result<u64, StateError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of at most `most`.
    pub fn count(&mut self, what: &'static str, most: u32) -> Result<u32, StateError> {
        match self.u32(what)? {
            found if found <= most => Ok(found),
            found => Err(StateError::Value {
                what,
                found: found.into(),
            }),
        }
    }

    pub fn flag(&mut self, what: &'static str) -> Result<bool, StateError> {
        self.count(what, 1).map(|flag| flag == 1)
    }
}
