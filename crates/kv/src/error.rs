//! Why a state can't be packed or unpacked.

use dwindle_formats::packed::PackedError;
use dwindle_formats::state::StateError;
use dwindle_ggml::GgmlError;
use dwindle_method::error::MethodError;

/// Why a state can't be packed or unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum KvError {
    #[error("it is no state of llama.cpp's: {0}")]
    State(#[from] StateError),
    #[error(transparent)]
    Packed(#[from] PackedError),
    #[error(transparent)]
    Ggml(#[from] GgmlError),
    #[error("can't factor: {0}")]
    Method(#[from] MethodError),
    #[error("it is no codebook: {0}")]
    Codebook(String),
    #[error("{what} is {found}, the codebook is for {expected}; calibrate one for this model")]
    OtherModel {
        what: &'static str,
        found: String,
        expected: String,
    },
    #[error("it was packed with codebook {expected}, this one is {found}")]
    OtherCodebook { found: String, expected: String },
    #[error(
        "its version does not say whether its quantized keys and values are rotated, as some of its programs have them; \
         packed with a codebook, which shows it, it can change; bit by bit it stays as it is"
    )]
    UnknownTurns,
    #[error("it was packed with a codebook; name it")]
    NoCodebook,
    #[error("the settings of the packing are damaged: {0}")]
    Settings(String),
    #[error("cells {first} to {end} are damaged")]
    Cells { first: usize, end: usize },
    #[error("the state holds no attention to pack")]
    Nothing,
    #[error("a state without keys and values can't have {0}")]
    Shape(&'static str),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
