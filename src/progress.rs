//! Reports the progress of long work. The library prints nothing: the caller decides what to show.

use crate::plan::Plan;

/// What a stage counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Tensors, files, groups: things that users know.
    Items,
    /// Work whose units mean nothing by themselves.
    Share,
}

/// Called by long work. Every method does nothing by default; `()` is a progress that nobody
/// watches.
pub trait Progress: Sync {
    /// A stage begins, with its total units; 0 if not known yet.
    fn begin(&self, _stage: &'static str, _total: u64, _unit: Unit) {}

    /// So many units more are done.
    fn advance(&self, _units: u64) {}

    /// Sets the units done, and the total.
    fn reach(&self, _done: u64, _total: u64) {}

    /// The stage has ended.
    fn end(&self) {}

    /// What becomes of each tensor is decided; writing comes next.
    fn planned(&self, _plan: &Plan, _is_stock: bool) {}

    /// Something that an earlier run has measured is used again.
    fn reuse(&self, _what: &str) {}

    /// Something that the user should know.
    fn note(&self, _text: &str) {}

    /// Something that the user should think about.
    fn warn(&self, _text: &str) {}
}

impl Progress for () {}
