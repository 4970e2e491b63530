//! What is found out about a model before its file is made: a text of its own where none was given, and
//! the survey. All of it stays in the model's workspace.

use std::path::Path;

use dwindle_formats::bounded::{self, limits};
use dwindle_formats::gguf::TensorType;

use super::surveyed::{CTX, Surveyed, scratch, sequences, surveyed};
use super::workspace::Workspace;
use super::{Choosing, Error, Text, Workbench};
use crate::blockwise::{Journal, Sequences, check};
use crate::measure::sample;
use crate::method::drift::Following;
use crate::plan::{Fingerprint, Plan};
use crate::progress::Unit;
use crate::statistics::{Measured, digest};
use crate::target::{Costs, fingerprint};
use crate::writing::Inputs;

/// Sequences of the held-out text that the model writes.
const HELD_OUT: usize = 10;

/// What was found out about a model.
pub struct Study {
    /// The text that layers are fitted to.
    pub text: Text,
    /// A text that nothing is chosen by; none where the user's text is too short.
    pub held_out: Option<Text>,
    /// The text as tokens.
    pub sequences: Sequences,
    /// The model's workspace.
    pub workspace: Workspace,
    found: Surveyed,
}

impl Study {
    /// Finds out what is not known yet; what types cost only where they are to be judged.
    ///
    /// # Errors
    /// Whatever ends a measurement.
    pub fn of(
        bench: &Workbench<'_>,
        workspaces: &Path,
        text: Option<&Text>,
        (choosing, judges): (&Choosing, bool),
    ) -> Result<Study, Error> {
        check(bench.subject.model)?;
        let digest = fingerprint(&bench.subject)?;
        let workspace = Workspace::open(workspaces, &digest, bench.path)?;
        let (text, held_out) = match text {
            Some(text) => (text.clone(), None),
            None => {
                let count = choosing.sequences() * CTX as usize;
                let own = own_text(bench, &workspace, ("text", 1), count)?;
                let other = own_text(bench, &workspace, ("held-out", 2), HELD_OUT * CTX as usize)?;
                (own, Some(other))
            }
        };
        let found = surveyed(bench, &workspace, &text, (choosing, judges))?;
        let model = bench.subject.model;
        let sequences = sequences(model, &text, choosing.sequences(), bench.options.threads)?;
        let held_out = held_out.or_else(|| rest(&text, &sequences));
        Ok(Study {
            sequences,
            text,
            held_out,
            workspace,
            found,
        })
    }

    /// What plans are made by.
    pub fn measured(&self) -> Measured<'_> {
        Measured {
            importance: Some(&self.found.importance),
            statistics: self.found.output.as_ref(),
            diagnosis: None,
            walked: true,
        }
    }

    /// What each type of each tensor costs: of those that are wanted, or of all.
    ///
    /// # Errors
    /// A tensor that none of the wanted types fits.
    pub fn costs(&self, bench: &Workbench<'_>, types: &[TensorType]) -> Result<Costs, Error> {
        Ok(self.found.costs(bench.subject.model, types)?)
    }

    /// Where the rounded blocks of a plan are kept.
    ///
    /// # Errors
    /// The folder can't be made.
    pub fn journal(
        &self,
        bench: &Workbench<'_>,
        plan: &Plan,
        inputs: &Inputs<'_>,
        following: Following,
    ) -> Result<Journal, Error> {
        let Inputs { subject, .. } = inputs;
        let tokens = bytemuck::cast_slice::<i32, u8>(&self.sequences.tokens);
        let model = fingerprint(&bench.subject)?;
        let key = Fingerprint::of_plan(plan, subject.model, &subject.measured, &[0; 32])
            .with(model.as_bytes())
            .with(tokens)
            .with(format!("{following:?} {}", self.sequences.cut.ctx).as_bytes())
            .finish();
        let key = digest(&key);
        Ok(Journal::open(self.workspace.folder(), &key[..16])?)
    }

    /// A folder for streams, where they are not to be in memory.
    pub fn scratch(&self, bench: &Workbench<'_>) -> Option<&Path> {
        let folder = self.workspace.folder();
        scratch(
            bench.subject.model,
            &self.sequences,
            bench.options.memory,
            folder,
        )
    }
}

/// What a text has behind the sequences that are used of it, if that is enough to measure on. Bytes stand
/// for tokens, so that some are left out in between.
fn rest(text: &Text, used: &Sequences) -> Option<Text> {
    let count = used.tokens.len() / used.cut.ctx;
    let left = used.available.saturating_sub(count + count / 8 + 1);
    if left < HELD_OUT {
        return None;
    }
    let share = left as f64 / used.available as f64;
    let mut start = text.words.len() - (share * text.words.len() as f64) as usize;
    while !text.words.is_char_boundary(start) {
        start += 1;
    }
    Some(Text {
        path: text.path.clone(),
        words: text.words[start..].to_string(),
    })
}

/// A text that the model writes, or has written.
fn own_text(
    bench: &Workbench<'_>,
    workspace: &Workspace,
    (name, seed): (&str, u64),
    tokens: usize,
) -> Result<Text, Error> {
    let path = workspace.file(&format!("{name}-{tokens}.txt"));
    if path.exists() {
        bench.progress.reuse("the model's own text");
        let words = bounded::read_text(&path, limits::TEXT)?;
        return Ok(Text { path, words });
    }
    bench
        .progress
        .begin("writing a text", tokens as u64, Unit::Items);
    let model = super::meter::load(bench.path)?;
    let total = tokens as u64;
    // Words at the seams are tokenized anew, often into fewer tokens.
    let wanted = tokens + tokens / 8 + CTX as usize;
    let words = sample(&model, wanted, seed, &mut |done| {
        bench.progress.reach((done as u64).min(total), total);
    })?;
    bench.progress.end();
    dwindle_formats::output::write(&path, words.as_bytes())?;
    Ok(Text { path, words })
}
