//! Measures files of a checkpoint on a text.

use std::path::Path;

use super::running::load;
use super::study::Study;
use super::surveyed::{scratch, sequences};
use super::{Error, Text, Workbench};
use crate::blockwise::BlockwisePredictions;
use crate::eval::{Estimate, EvalOptions, Evaluation, Reference, compare};
use crate::llama::placement::Placement;
use crate::progress::Unit;
use crate::statistics::digest;

/// The checkpoint's predictions of a text, which files are compared with.
pub(super) struct Meter<'a> {
    predictions: BlockwisePredictions<'a>,
    text: String,
    options: EvalOptions,
    placement: &'a Placement,
    /// A digest of what files are run over.
    pub key: String,
}

impl<'a> Meter<'a> {
    /// Runs the checkpoint over the beginning of a text, if no earlier run has.
    pub fn new(
        bench: &Workbench<'a>,
        study: &Study,
        text: &Text,
        chunks: usize,
    ) -> Result<Meter<'a>, Error> {
        let subject = bench.original;
        let text_of = sequences(bench, subject.model, text, chunks)?;
        let workspace = &study.workspace;
        let tokens = bytemuck::cast_slice::<i32, u8>(&text_of.tokens);
        let key = digest(&[tokens, &text_of.cut.ctx.to_le_bytes()].concat());
        let kept = workspace.file(&format!("predictions-{}.f32", &key[..16]));
        let memory = bench.options.memory;
        let places = scratch(subject.model, &text_of, memory, workspace.folder());
        bench
            .progress
            .begin("measuring the original", 0, Unit::Items);
        let predictions =
            BlockwisePredictions::of(subject, &text_of, (&kept, places), &mut |done, all| {
                bench.progress.reach(done.into(), all.into());
            })?;
        bench.progress.end();
        Ok(Meter {
            key: key[..16].to_string(),
            predictions,
            text: text.words.clone(),
            placement: bench.placement,
            options: EvalOptions {
                ctx: text_of.cut.ctx as u32,
                chunks: Some(chunks),
                ..EvalOptions::default()
            },
        })
    }

    /// Runs a file over the same text.
    pub fn evaluate(&self, file: &Path) -> Result<Evaluation, Error> {
        let reference = Reference::Logits(&self.predictions);
        let model = load(file, self.placement)?;
        let nothing = &mut |_| ();
        Ok(compare(
            &model,
            &reference,
            &self.text,
            &self.options,
            nothing,
        )?)
    }

    /// The mean KL divergence of a file.
    pub fn kld(&self, file: &Path) -> Result<Estimate, Error> {
        let divergence = self.evaluate(file)?.divergence;
        Ok(divergence.ok_or(Error::NothingCompared)?.kld)
    }
}
