//! Does the work of the commands, from a checkpoint's files to a measured file, without arguments
//! and without printing.

mod adapter;
mod choosing;
mod compress;
mod compression;
mod error;
mod evaluate;
mod fitted;
mod frontier;
mod meter;
mod outcome;
mod running;
mod shrink;
mod study;
mod surveyed;
mod sweep;
mod text;
mod trial;
mod types_of;
pub mod workspace;

use std::path::Path;

pub use adapter::{Adapter, adapter};
pub use choosing::{Choosing, Effort, Goal, choose, refined};
pub use compress::Compress;
pub use compression::{Compressed, is_stock};
pub use error::Error;
pub use evaluate::{calibrate, evaluate, verify};
pub use frontier::{Check, Point, Row, knee, mean_ratio, smallest_within, thriftiest};
pub use outcome::{Gate, Outcome};
pub use shrink::Report as StructureReport;
pub use study::Study;
pub use sweep::{Sweep, sweep};
pub use text::Text;

use crate::architecture::role;
use crate::blockwise::{Places, fit};
use crate::llama::placement::Placement;
use crate::method::drift::Following;
use crate::plan::{Plan, Rounding, Step, Subject, Treatment};
use crate::progress::{Progress, Unit};
use crate::target::Task;
use crate::writing::{Fitted, Inputs, Options, OutputFile, compress};

/// A checkpoint, what was measured of it, and the memory and threads to use.
#[derive(Clone, Copy)]
pub struct Workbench<'a> {
    /// The checkpoint's folder or file.
    pub path: &'a Path,
    /// What is compressed.
    pub subject: Subject<'a>,
    /// The whole model, which files are compared with.
    pub original: Subject<'a>,
    /// How tensors are rounded.
    pub rounding: Rounding,
    /// Memory and threads.
    pub options: Options,
    /// The devices that models run on.
    pub placement: &'a Placement,
    /// A folder that has room for files of the model.
    pub scratch: &'a Path,
    /// What layers that are rounded for their outputs are fitted to.
    pub study: Option<&'a Study>,
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
    /// [`Error`].
    pub fn write(&self, plan: &Plan, file: &Path) -> Result<u64, Error> {
        let mut inputs = Inputs {
            subject: self.subject,
            fitted: None,
            // The file is deleted after its measurement, so no run resumes it.
            content: &[0; 32],
        };
        let rounded = self.rounded(plan, &inputs)?;
        inputs.fitted = rounded.as_ref();
        let nothing = &mut |_| ();
        let files = [OutputFile::whole(plan, file)];
        Ok(compress(plan, &inputs, &files, self.options, nothing)?.bytes)
    }

    /// The layers of a plan that are rounded for what the rounded layers before them give.
    fn rounded(&self, plan: &Plan, inputs: &Inputs<'_>) -> Result<Option<Fitted>, Error> {
        let is_rounded = |step: &Step| {
            matches!(step.treatment, Treatment::Round) && role(&step.stored.name).0.is_some()
        };
        let Some(study) = self.study.filter(|_| plan.steps.iter().any(is_rounded)) else {
            return Ok(None);
        };
        self.progress.begin("rounding", 0, Unit::Items);
        let progress = self.progress;
        let reach = &mut |done: u32, total: u32| progress.reach(done.into(), total.into());
        let journal = study.journal(self, plan, FOLLOWING)?;
        let places = Places {
            scratch: study.scratch(self),
            journal: Some(&journal),
        };
        let (fitted, _) = fit(plan, inputs, &study.sequences, (FOLLOWING, places), reach)?;
        self.progress.end();
        Ok(Some(fitted))
    }
}

/// How far weights follow what their inputs have drifted by. A smaller ridge fits the text that it is
/// calibrated on better, and others worse (docs/notes.md).
const FOLLOWING: Following = Following {
    blend: 1.0,
    ridge: 0.5,
};
