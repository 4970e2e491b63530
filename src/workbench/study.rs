//! What is found out about a model before its file is made. All of it stays in the model's workspace.

use std::path::{Path, PathBuf};

use dwindle_formats::gguf::TensorType;

use super::surveyed::{Question, Surveyed, scratch, sequences};
use super::workspace::Workspace;
use super::{Choosing, Error, Text, Workbench};
use crate::blockwise::{Journal, Sequences, WIDEST, check};
use crate::measure::corpus;
use crate::method::drift::Following;
use crate::plan::{Fingerprint, Plan};
use crate::statistics::{Measured, digest};
use crate::target::{Costs, Part, fingerprint};

/// Sequences of a text that are worth measuring on.
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
    /// Finds out what is not known yet, and what some types cost.
    ///
    /// # Errors
    /// Whatever ends a measurement.
    pub fn of(
        bench: &Workbench<'_>,
        workspaces: &Path,
        text: Option<&Text>,
        (choosing, types): (&Choosing, &[TensorType]),
    ) -> Result<Study, Error> {
        check(bench.subject.model)?;
        let workspace = workspace_of(bench, workspaces)?;
        let (text, held_out) = texts(text);
        let question = Question {
            bench,
            workspace: &workspace,
            text: &text,
            choosing,
            types,
        };
        let found = question.answer()?;
        let model = bench.subject.model;
        let sequences = sequences(bench, model, &text, choosing.sequences())?;
        let held_out = held_out.or_else(|| rest(&text, &sequences));
        Ok(Study {
            sequences,
            text,
            held_out,
            workspace,
            found,
        })
    }

    /// Finds out a part of what is not known yet, into the workspace. Gives the file that holds it.
    ///
    /// # Errors
    /// Whatever ends a measurement.
    pub fn part(
        bench: &Workbench<'_>,
        workspaces: &Path,
        text: Option<&Text>,
        (choosing, types): (&Choosing, &[TensorType]),
        part: Part,
    ) -> Result<PathBuf, Error> {
        check(bench.subject.model)?;
        let question = Question {
            bench,
            workspace: &workspace_of(bench, workspaces)?,
            text: &texts(text).0,
            choosing,
            types,
        };
        question.part(part)
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
        following: Following,
    ) -> Result<Journal, Error> {
        let key = self.key(bench, plan, following)?;
        Ok(Journal::open(self.workspace.folder(), &key)?)
    }

    /// A digest of everything that a plan's weights depend on.
    ///
    /// # Errors
    /// The model can't be read.
    pub fn key(
        &self,
        bench: &Workbench<'_>,
        plan: &Plan,
        following: Following,
    ) -> Result<String, Error> {
        let subject = &bench.subject;
        let tokens = bytemuck::cast_slice::<i32, u8>(&self.sequences.tokens);
        let model = fingerprint(subject)?;
        let key = Fingerprint::of_plan(plan, subject.model, &subject.measured, &[0; 32])
            .with(model.as_bytes())
            .with(tokens)
            .with(format!("{following:?} {} {WIDEST}", self.sequences.cut.ctx).as_bytes())
            .finish();
        Ok(digest(&key)[..16].to_string())
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

fn workspace_of(bench: &Workbench<'_>, workspaces: &Path) -> Result<Workspace, Error> {
    let digest = fingerprint(&bench.subject)?;
    Workspace::open(workspaces, &digest, bench.path)
}

/// The text to measure on, and one that nothing is chosen by, if it is known yet.
fn texts(own: Option<&Text>) -> (Text, Option<Text>) {
    match own {
        Some(text) => (text.clone(), None),
        None => (
            Text::built_in("dwindle's mixed text", corpus::CALIBRATION),
            Some(Text::built_in("dwindle's held-out text", corpus::HELD_OUT)),
        ),
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
        path: format!("the rest of {}", text.name()).into(),
        words: text.words[start..].to_string(),
    })
}
