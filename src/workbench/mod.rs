//! Does the work of the commands, from a checkpoint's files to a measured file, without arguments
//! and without printing.

mod choosing;
mod compress;
mod compression;
mod costs;
mod error;
mod evaluate;
mod fitted;
mod frontier;
mod meter;
mod outcome;
mod shrink;
mod sweep;
mod text;
mod trial;
mod types_of;

use std::path::Path;

pub use choosing::{Choosing, Effort, Goal, choose, refined};
pub use compress::Compress;
pub use compression::{Compressed, is_stock};
pub use costs::costs;
pub use error::Error;
pub use evaluate::{calibrate, evaluate, verify};
pub use frontier::{Check, Point, Row, knee, mean_ratio, smallest_within, thriftiest};
pub use outcome::{Gate, Outcome};
pub use shrink::Report as StructureReport;
pub use sweep::{Sweep, sweep};
pub use text::Text;

use crate::plan::{Plan, Rounding, Subject};
use crate::progress::Progress;
use crate::target::Task;
use crate::writing::{Inputs, Options, PipelineError};

/// A checkpoint, what was measured of it, and the memory and threads to use.
#[derive(Clone, Copy)]
pub struct Workbench<'a> {
    /// The checkpoint's folder or file.
    pub path: &'a Path,
    /// What is compressed.
    pub subject: Subject<'a>,
    /// How tensors are rounded.
    pub rounding: Rounding,
    /// Memory and threads.
    pub options: Options,
    /// A folder that has room for files of the model.
    pub scratch: &'a Path,
    /// Receives progress.
    pub progress: &'a dyn Progress,
}

impl<'a> Workbench<'a> {
    /// What types are chosen for.
    pub fn task(&self) -> Task<'a> {
        Task {
            subject: self.subject,
            rounding: self.rounding,
            scratch: self.scratch,
        }
    }

    /// Writes the file of a plan, and gives its bytes.
    ///
    /// # Errors
    /// [`PipelineError`].
    pub fn write(&self, plan: &Plan, file: &Path) -> Result<u64, PipelineError> {
        let inputs = Inputs {
            subject: self.subject,
            fitted: None,
            // The file is deleted after its measurement, so no run resumes it.
            content: &[0; 32],
        };
        let nothing = &mut |_| ();
        Ok(crate::writing::compress(plan, &inputs, file, self.options, nothing)?.bytes)
    }
}
