//! Reads a state's form and tokens; `memory.rs` reads what follows.

use super::{Form, State, StateError, memory};

pub(super) const SEQUENCE: u32 = 0x6767_7371;
pub(super) const SESSION: u32 = 0x6767_736e;
pub(super) const BYTES: u32 = 0xaf14_3cd8;

/// Says where everything is in a state, whichever form it has.
///
/// # Errors
/// [`StateError`]: it is another file, has an unknown version, is damaged, or does not end where it should.
///
/// # Examples
/// ```
/// assert!(dwindle_formats::state::read(b"no state").is_err());
/// ```
pub fn read(bytes: &[u8]) -> Result<State, StateError> {
    read_from(&[(0, bytes)], bytes.len())
}

/// As [`read`], of a state of `len` bytes of which only pieces are there.
pub(super) fn read_from(pieces: &[(usize, &[u8])], len: usize) -> Result<State, StateError> {
    let mut cursor = Cursor::new(pieces, len);
    let magic = cursor.u32("the beginning")?;
    let form = match magic {
        SEQUENCE => Form::Sequence {
            version: version(&mut cursor, [3, 4], "3 or 4")?,
        },
        SESSION => Form::Session {
            version: version(&mut cursor, [10, 11], "10 or 11")?,
            architecture: String::new(),
        },
        BYTES => Form::Bytes {
            sequence: cursor.i32("the sequence")?,
        },
        other => return Err(StateError::Magic(other)),
    };
    let mut tokens = Vec::new();
    if !matches!(form, Form::Bytes { .. }) {
        let count = cursor.u32("the number of tokens")?;
        cursor.present("the tokens", u64::from(count) * 4)?;
        for _ in 0..count {
            tokens.push(cursor.i32("a token")?);
        }
    }
    let form = match form {
        Form::Session { version, .. } => Form::Session {
            version,
            architecture: architecture(&mut cursor)?,
        },
        form => form,
    };
    let sections = memory::sections(cursor, form.says_turns())?;
    Ok(State {
        form,
        tokens,
        sections,
    })
}

fn version(
    cursor: &mut Cursor<'_, '_>,
    known: [u32; 2],
    expected: &'static str,
) -> Result<u32, StateError> {
    match cursor.u32("the version")? {
        found if known.contains(&found) => Ok(found),
        found => Err(StateError::Version { found, expected }),
    }
}

fn architecture(cursor: &mut Cursor<'_, '_>) -> Result<String, StateError> {
    let what = "the length of the architecture's name";
    let len = cursor.count(what, 256)?;
    let name = cursor.take("the architecture's name", len as usize)?;
    match std::str::from_utf8(name) {
        Ok(name) if !name.chars().any(char::is_control) => Ok(name.to_string()),
        _ => Err(StateError::Value {
            what: "a byte of the architecture's name",
            found: name
                .iter()
                .copied()
                .find(|b| !b.is_ascii_graphic())
                .unwrap_or(0)
                .into(),
        }),
    }
}

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
