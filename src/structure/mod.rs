//! Structured compression: prunes columns, heads, experts and blocks, so that an ordinary, smaller
//! model remains that stock llama.cpp runs.
//!
//! A column of a feed-forward layer is a row of `ffn_gate` and `ffn_up` and a column of `ffn_down`;
//! a key and value head is rows of `attn_q`, `attn_k`, `attn_v` and columns of `attn_output`. Both
//! are chosen by what they cost the layer's output, and the matrix that reads them is fitted to the
//! kept ones ([`nystrom`](crate::method::nystrom)). Heads get shorter where their values go through
//! a basis ([`value_output`](crate::method::value_output)) or lose rotary pairs
//! ([`rotary_pairs`](crate::method::rotary_pairs)); experts and whole blocks are removed by how
//! little they contribute.

mod blocks;
mod budget;
mod check;
mod experts;
mod fit;
mod form;
mod heads;
mod kept;
mod orders;
mod pairs;
mod reduce;
mod rotary;

pub use blocks::{Block, Blocks, Whole, parameters};
pub use budget::decide;
pub use check::check;
pub use fit::{Fits, Inputs, Narrowed, fit, narrowed};
pub use kept::{Kept, KeptBlock};
pub use pairs::{Pairs, pair_elements};
pub use reduce::{importance, reduce};
pub use rotary::{check as check_rotary, frequencies, own_scale};

use crate::ggml::GgmlError;
use crate::method::error::MethodError;
use crate::statistics::StatisticsError;

/// Why a model's structure can't be reduced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum StructureError {
    #[error("the model lacks `{0}` in its metadata, which structured compression depends on")]
    Metadata(String),
    #[error(
        "block {block} of this `{architecture}` has no {part} that structured compression knows; {instead}"
    )]
    Unknown {
        block: usize,
        architecture: String,
        part: &'static str,
        instead: &'static str,
    },
    #[error(
        "structured compression needs statistics of the input of tensor `{tensor}`, and there are none"
    )]
    StatisticsMissing { tensor: String },
    #[error(
        "`keep` shares a budget by measured sensitivity; supply a diagnosis, which measures that of `{tensor}`"
    )]
    DiagnosisMissing { tensor: String },
    #[error("{what} is {found}, expected {expected}")]
    Target {
        what: &'static str,
        found: String,
        expected: String,
    },
    #[error("tensor `{tensor}` can't be reduced: {source}")]
    Method { tensor: String, source: MethodError },
    #[error("tensor `{tensor}` can't be read: {source}")]
    Read { tensor: String, source: GgmlError },
    #[error(transparent)]
    Statistics(#[from] StatisticsError),
}
