//! What a plan is carried out on.

use dwindle_formats::container::Digest;

use super::fitted::Fitted;
use crate::plan::Subject;

/// What a plan is carried out on.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// What the plan was made for.
    pub subject: Subject<'a>,
    /// Tensors that were fitted to one another beforehand.
    pub fitted: Option<&'a Fitted>,
    /// A digest of what the source holds, by which an unfinished file is recognised; see
    /// [`content`](crate::checkpoint::fingerprint::content).
    pub content: &'a Digest,
}
