//! What a plan is carried out on.

use dwindle_formats::container::Digest;

use super::fitted::Fitted;
use super::resources::Options;
use crate::plan::{Fingerprint, Plan, Subject};

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

impl Inputs<'_> {
    /// All that decides the bytes of a plan's output.
    pub(super) fn fingerprint(&self, plan: &Plan, options: Options) -> Fingerprint {
        let Subject {
            model, measured, ..
        } = &self.subject;
        Fingerprint::of_plan(plan, model, measured, self.content)
            .with(&[u8::from(options.compress)])
            .with(&self.fitted.map_or([0; 32], Fitted::digest))
    }
}
