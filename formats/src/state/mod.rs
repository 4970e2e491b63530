//! llama.cpp's saved states: what a model keeps of the tokens that it has read.
//!
//! Three forms hold the same memory: files of one sequence (`llama_state_seq_save_file`, llama-server's slots), files of
//! a session (llama-cli's `--prompt-cache`), and the bytes that `llama_state_seq_get_data` gives. [`read`] says
//! where everything is in such bytes, to the last of them; [`lay_out`](State::lay_out) says where everything will be in
//! others. Rows are never copied here. `STATES.md` has the layout.
//!
//! llama.cpp trusts what it reads. Whoever hands it a state should read it here first.

mod cursor;
mod description;
mod memory;
mod read;
mod tokens;
mod write;

use std::ops::Range;

use crate::gguf::TensorType;

pub use description::{Piece, describe, described};
pub use read::read;
pub use tokens::tokens;
pub use write::Frame;

/// A saved state. Ranges and places are those of the bytes that it was read from, or will be written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Which of llama.cpp's forms it has.
    pub form: Form,
    /// The numbers before the memory, mostly the tokens; see [`tokens`]. None in bytes without a file.
    pub tokens: Vec<i32>,
    /// What the model keeps.
    pub sections: Vec<Section>,
}

/// llama.cpp's forms of states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// A file of one sequence.
    Sequence {
        /// 3 or 4.
        version: u32,
    },
    /// A file of all sequences.
    Session {
        /// 10 or 11.
        version: u32,
        /// llama.cpp's name of the model's family.
        architecture: String,
    },
    /// One sequence, without a file.
    Bytes {
        /// The sequence that was saved.
        sequence: i32,
    },
}

impl Form {
    /// Whether the form says how keys and values are turned. Before versions 4 and 11 they never are.
    pub fn says_turns(&self) -> bool {
        !matches!(
            self,
            Form::Sequence { version: 3 } | Form::Session { version: 10, .. }
        )
    }
}

/// A part of what a model keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Section {
    /// Keys and values of attention.
    Attention(Attention),
    /// States of recurrent layers, which are carried as they are.
    Recurrent {
        /// Their bytes.
        range: Range<usize>,
        /// The position of each state's last token.
        positions: Vec<i32>,
    },
}

/// Keys and values of a model's layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attention {
    /// Whether cells have two more coordinates and a token, for M-RoPE and embeddings of layers.
    pub has_coordinates: bool,
    /// One for each sequence, or one for all.
    pub streams: Vec<Stream>,
}

/// Keys and values of some cells.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stream {
    /// The position of each cell.
    pub positions: Vec<i32>,
    /// All that the form says of the cells, as it stands there.
    pub cells: Vec<u8>,
    /// The rows; none where there are no cells.
    pub rows: Option<Rows>,
}

/// Keys and values in memory order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Whether values are stored by element, not by cell.
    pub is_transposed: bool,
    /// Size of the Hadamard matrix that keys are multiplied by; 0 for none.
    pub key_turn: u32,
    /// The same of values.
    pub value_turn: u32,
    /// The keys of each layer.
    pub keys: Vec<Part>,
    /// The values of each layer; none in latent attention.
    pub values: Vec<Part>,
}

/// Keys or values of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Their type.
    pub ty: TensorType,
    /// Elements of a cell.
    pub width: u32,
    /// Where they begin.
    pub at: usize,
}

impl Part {
    /// Bytes of a cell.
    pub fn row_bytes(&self) -> usize {
        self.ty.row_bytes(self.width.into()) as usize
    }
}

/// Why bytes are no state, or none that can be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum StateError {
    #[error("it begins with {0:#010x}, which no state of llama.cpp's does")]
    Magic(u32),
    #[error("its version is {found}, expected {expected}; save it again with another llama.cpp")]
    Version { found: u32, expected: &'static str },
    #[error("it ends early: {what} needs {needed} bytes, {left} are left")]
    Short {
        what: &'static str,
        needed: u64,
        left: u64,
    },
    #[error("{what} is {found}, which llama.cpp does not write")]
    Value { what: &'static str, found: i64 },
    #[error("its memory is of a kind that is not known here; it fits none of {0}")]
    Kind(&'static str),
}
