//! Says what a state's bytes are, except for its rows.

use super::read::{BYTES, SEQUENCE, SESSION};
use super::{Attention, Form, Part, Section, State};

/// The bytes of a state around its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of the whole.
    pub len: usize,
    /// What stands between rows, each with its place.
    pub pieces: Vec<(usize, Vec<u8>)>,
}

impl Frame {
    /// The bytes that follow the last piece.
    fn piece(&mut self) -> &mut Vec<u8> {
        let at = self.len;
        let ends = |(begin, bytes): &(usize, Vec<u8>)| begin + bytes.len() == at;
        if !self.pieces.last().is_some_and(ends) {
            self.pieces.push((at, Vec::new()));
        }
        &mut self.pieces.last_mut().expect("one was just there").1
    }

    fn put(&mut self, bytes: &[u8]) {
        self.piece().extend_from_slice(bytes);
        self.len += bytes.len();
    }

    fn number(&mut self, number: u32) {
        self.put(&number.to_le_bytes());
    }

    /// Leaves room for rows, and says where.
    fn room(&mut self, bytes: usize) -> usize {
        let at = self.len;
        self.len += bytes;
        at
    }
}

impl State {
    /// Gives everything its place, in the order that llama.cpp reads it, and says what stands around the rows and
    /// recurrent sections.
    ///
    /// Rows of `None` are written as streams without cells.
    pub fn lay_out(&mut self) -> Frame {
        let mut frame = Frame {
            len: 0,
            pieces: Vec::new(),
        };
        let says_turns = self.form.says_turns();
        self.head(&mut frame);
        for section in &mut self.sections {
            match section {
                Section::Attention(attention) => place(attention, says_turns, &mut frame),
                Section::Recurrent { range, .. } => {
                    let at = frame.room(range.len());
                    *range = at..frame.len;
                }
            }
        }
        frame
    }

    /// The same state in another form: `bytes` are those that this one was read from.
    ///
    /// `None` where the forms say different things of rows.
    pub fn rewrapped(&self, bytes: &[u8], form: Form, tokens: Vec<i32>) -> Option<Vec<u8>> {
        if self.form.says_turns() != form.says_turns() {
            return None;
        }
        let head = |state: &State| {
            let mut frame = Frame {
                len: 0,
                pieces: Vec::new(),
            };
            state.head(&mut frame);
            frame.pieces.swap_remove(0).1
        };
        let own = head(self).len();
        let other = State {
            form,
            tokens,
            sections: Vec::new(),
        };
        Some([&head(&other), bytes.get(own..)?].concat())
    }

    fn head(&self, frame: &mut Frame) {
        let (magic, version) = match &self.form {
            Form::Sequence { version } => (SEQUENCE, *version),
            Form::Session { version, .. } => (SESSION, *version),
            Form::Bytes { sequence } => (BYTES, sequence.cast_unsigned()),
        };
        frame.number(magic);
        frame.number(version);
        if !matches!(self.form, Form::Bytes { .. }) {
            frame.number(self.tokens.len() as u32);
            for token in &self.tokens {
                frame.put(&token.to_le_bytes());
            }
        }
        if let Form::Session { architecture, .. } = &self.form {
            frame.number(architecture.len() as u32);
            frame.put(architecture.as_bytes());
        }
    }
}

fn place(attention: &mut Attention, says_turns: bool, frame: &mut Frame) {
    frame.number(attention.streams.len() as u32);
    for stream in &mut attention.streams {
        let Some(rows) = &mut stream.rows else {
            frame.number(0);
            continue;
        };
        let cells = stream.positions.len();
        frame.number(cells as u32);
        frame.put(&stream.cells);
        frame.number(rows.is_transposed.into());
        frame.number(rows.keys.len() as u32);
        if says_turns {
            frame.number(rows.key_turn);
            frame.number(rows.value_turn);
        }
        for part in &mut rows.keys {
            by_cell(part, cells, frame);
        }
        for part in &mut rows.values {
            match rows.is_transposed {
                true => by_element(part, cells, frame),
                false => by_cell(part, cells, frame),
            }
        }
    }
}

fn by_cell(part: &mut Part, cells: usize, frame: &mut Frame) {
    frame.number(part.ty.id());
    frame.put(&(part.row_bytes() as u64).to_le_bytes());
    part.at = frame.room(part.row_bytes() * cells);
}

fn by_element(part: &mut Part, cells: usize, frame: &mut Frame) {
    frame.number(part.ty.id());
    frame.number(part.ty.block_bytes() as u32);
    frame.number(part.width);
    part.at = frame.room(part.row_bytes() * cells);
}
