//! Reads a state's form and tokens; `memory.rs` reads what follows.

use super::cursor::Cursor;
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
