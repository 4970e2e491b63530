//! Checks a model before llama.cpp sees it.
//!
//! llama.cpp trusts the files that it loads: hyperparameters that contradict one another fail an
//! assertion, a norm in half precision fails one in the middle of a computation, and an integer
//! matrix makes it call a function that is not there. Every such case that metadata or shapes can
//! reach in the pinned version, and that can be seen from the header, is refused here, whether the
//! model comes from a `.gguf`, a container or a checkpoint: [`Model`](super::model::Model) checks
//! each model that it loads. What llama.cpp itself refuses with an exception is left to it.
//!
//! There are three lines of defence, and this is the first. The second are the guarded calls
//! (`guard.rs`): assertions that fail while a model is loaded, a context made or a graph built are
//! caught, and become errors. The third is that a program may end with an exit code and a sentence
//! where an assertion fails on a worker thread of a computation, which nobody can catch.
//!
//! A child process that loads the model first, so that this one survives whatever happens, was
//! considered and left out. It would have to load what the parent loads, with the same devices:
//! twice the time, and for a while twice the memory, of every start, for cases of which the
//! mutation test (`cargo xtask hostile`) finds none. A library can't start itself as another
//! program either; only the `dwindle` command could, and there a child's end and its own differ by
//! a sentence.

use dwindle_formats::gguf::{Metadata, TensorType};

pub(super) mod file;
mod hyperparameters;
mod tensors;
mod vocabulary;

/// Why a model would fail inside of llama.cpp.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum Refusal {
    #[error("`{key}` is {found}, expected {expected}")]
    Value {
        key: String,
        found: String,
        expected: String,
    },
    #[error("`{key}` is missing, expected {expected}")]
    Missing { key: String, expected: String },
    #[error(
        "tokens {first} and {second} of the vocabulary are both `{text}`, expected distinct tokens"
    )]
    SameTokens {
        first: usize,
        second: usize,
        text: String,
    },
    #[error("token {token} of the vocabulary has {bytes} bytes, expected {limit} at most")]
    LongToken {
        token: usize,
        bytes: usize,
        limit: usize,
    },
    #[error("tensor `{tensor}` is {found}, expected {expected}")]
    Type {
        tensor: String,
        found: TensorType,
        expected: &'static str,
    },
    #[error("tensor `{tensor}` has the shape {found:?}, expected {expected}")]
    Shape {
        tensor: String,
        found: Vec<u64>,
        expected: String,
    },
    #[error(
        "the file's tensors lie at multiples of {found} bytes, expected 32 or a multiple of it; write the file again with another `general.alignment`"
    )]
    Alignment { found: u64 },
}

/// A tensor of the header.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its dimensions, row length first.
    pub shape: &'a [u64],
    /// Its element type.
    pub ty: TensorType,
}

/// Checks a model's metadata and tensors.
///
/// # Errors
/// The first thing that would fail.
pub fn admit<'a>(
    metadata: &Metadata,
    tensors: impl Iterator<Item = Described<'a>> + Clone,
) -> Result<(), Refusal> {
    hyperparameters::check(metadata)?;
    vocabulary::check(metadata, tensors.clone())?;
    tensors::check(metadata, tensors)
}

/// Checks the factors of an adapter.
///
/// # Errors
/// The first that nothing can be multiplied with.
pub(super) fn admit_factors<'a>(
    mut tensors: impl Iterator<Item = Described<'a>>,
) -> Result<(), Refusal> {
    tensors.try_for_each(|tensor| tensors::check_factor(&tensor))
}

/// Checks where a file's tensors are, if llama.cpp shall compute with them in place.
///
/// # Errors
/// An alignment that ggml's buffers don't allow.
pub(super) fn admit_alignment(alignment: u64) -> Result<(), Refusal> {
    if alignment.is_multiple_of(32) {
        Ok(())
    } else {
        Err(Refusal::Alignment { found: alignment })
    }
}

/// The metadata of one architecture.
#[derive(Debug, Clone, Copy)]
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    /// `None` where the file does not say its architecture, which llama.cpp refuses.
    fn of(metadata: &'a Metadata) -> Option<Keys<'a>> {
        let architecture = metadata.get("general.architecture")?.as_str()?;
        Some(Keys {
            metadata,
            architecture,
        })
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A count, or the largest of an array of counts, one for each layer.
    fn count(&self, key: &str) -> Option<u64> {
        use dwindle_formats::gguf::Value;
        match self.metadata.get(&self.name(key))? {
            Value::Array(array) => array.max_u64(),
            value => value.as_u64(),
        }
    }

    /// A count that is the same for all layers.
    fn scalar(&self, key: &str) -> Option<u64> {
        self.metadata.get(&self.name(key))?.as_u64()
    }

    fn refuse<T>(
        &self,
        key: &str,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Result<T, Refusal> {
        Err(Refusal::Value {
            key: self.name(key),
            found: found.to_string(),
            expected: expected.into(),
        })
    }
}

#[cfg(test)]
mod tests;
