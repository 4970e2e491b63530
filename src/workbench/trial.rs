//! Writes files of chosen types and measures them.

use dwindle_formats::output::Scratch;

use super::meter::Meter;
use super::{Error, Study, Workbench};
use crate::target::Chosen;

pub(super) struct Trial<'a> {
    bench: &'a Workbench<'a>,
    meter: Meter<'a>,
    dir: Scratch,
}

impl<'a> Trial<'a> {
    pub fn new(bench: &'a Workbench<'a>, study: &Study, chunks: usize) -> Result<Trial<'a>, Error> {
        Ok(Trial {
            bench,
            meter: Meter::new(bench, study, &study.text, chunks)?,
            dir: Scratch::new_in(bench.scratch)?,
        })
    }

    /// The measured divergence of a choice.
    pub fn kld(&self, chosen: &Chosen) -> Result<f64, Error> {
        let file = self.dir.path().join("candidate.gguf");
        self.bench.write(&chosen.plan, &file)?;
        Ok(self.meter.kld(&file)?.value)
    }
}
