//! Measures in one walk over a model what choosing types needs: what each type of each tensor does to
//! its layer's output, and what an error there costs the model.
//!
//! Block after block of the original is run over all tokens of a text; what its layers read is summed,
//! the types of their weights are judged by it, and the sums are forgotten. Over the first sequences
//! more streams run along. In one each, the weights of some neighbouring blocks are rounded to their
//! probes' types; its divergence at the end is shared among them by what each, rounded alone, does to
//! the stream behind its block. That takes one run for each group of blocks, instead of one for each
//! tensor.

mod block;
mod head;
mod kept;
mod layer;
mod part;

use std::path::Path;

use dwindle_formats::gguf::{DEFAULT_ALIGNMENT, TensorType};

use super::candidates::COARSE;
use super::{BudgetError, Candidate, TensorCandidates};
use crate::architecture::Model;
use crate::blockwise::{Cut, EmbeddingError, WalkError, streams_of};
use crate::llama::model::Token;
use crate::plan::{Rounding, Subject};
use crate::statistics::{Accumulator, TensorSurvey, TypeSurvey};
use block::Surveyor;
use head::finish;
use kept::Kept;
pub use part::Part;

/// What is surveyed.
#[derive(Clone)]
pub struct Task<'a> {
    /// The model.
    pub subject: Subject<'a>,
    /// Types to judge.
    pub types: &'a [TensorType],
    /// How tensors will be rounded.
    pub rounding: Rounding,
    /// How the tokens are cut.
    pub cut: Cut,
    /// Sequences at the beginning on which divergences are measured.
    pub measured: usize,
    /// Groups of neighbouring blocks that are rounded together.
    pub groups: usize,
    /// The groups that are surveyed.
    pub part: Part,
    /// A folder for streams, where they are not to be in memory.
    pub scratch: Option<&'a Path>,
    /// A folder for what was found so far, which nothing else uses.
    pub kept: &'a Path,
}

/// What was found of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Surveyed {
    /// Its types.
    pub candidates: TensorCandidates,
    /// Importance weights of its columns, of each slice or of all; empty where its input is unknown.
    pub importance: Vec<f32>,
    /// The mean KL divergence that it causes in its probe's type.
    pub kld: f64,
}

impl Surveyed {
    /// The mean KL divergence that it is predicted to cause in a type; none where that was not judged.
    fn divergence(&self, ty: TensorType) -> f64 {
        let TensorCandidates { all, probe, .. } = &self.candidates;
        match all.iter().find(|c| c.ty == ty) {
            Some(found) if probe.error > 0.0 => self.kld * found.error / probe.error,
            _ => 0.0,
        }
    }

    /// As it stands in a file.
    pub fn described(&self) -> TensorSurvey {
        let ty = |c: &Candidate| TypeSurvey {
            name: c.ty.to_string(),
            error: c.error,
        };
        TensorSurvey {
            name: self.candidates.name.clone(),
            types: self.candidates.all.iter().map(ty).collect(),
            probe: ty(&self.candidates.probe),
            kld: self.kld,
            importance: self.importance.clone(),
        }
    }

    /// From a file, for the tensor of its name, by position; `None` where a type is unknown.
    pub fn read(found: TensorSurvey, index: usize, model: &Model) -> Option<Surveyed> {
        let shape = &model.tensors[index].shape;
        let candidate = |t: &TypeSurvey| -> Option<Candidate> {
            let ty: TensorType = t.name.parse().ok()?;
            Some(Candidate {
                ty,
                bytes: ty.bytes(shape)?.next_multiple_of(DEFAULT_ALIGNMENT),
                error: t.error,
            })
        };
        Some(Surveyed {
            candidates: TensorCandidates {
                index,
                all: found.types.iter().map(candidate).collect::<Option<_>>()?,
                probe: candidate(&found.probe)?,
                name: found.name,
            },
            importance: found.importance,
            kld: found.kld,
        })
    }
}

/// What was found of a model.
pub struct Survey {
    /// The mean KL divergence of the model in Q8_0; 0 where another part measures it.
    pub coarse: f64,
    /// Of each weight of the part, in the model's order.
    pub tensors: Vec<Surveyed>,
    /// What the output layer reads, and the weights that read it.
    pub output: Option<(Vec<String>, Accumulator)>,
}

/// The mean KL divergence that rounding what layers read to 8 bits causes, as products with quantized weights
/// do: what a model in Q8_0 loses beyond what its weights do.
pub fn activations(coarse: f64, weights: &[Surveyed]) -> f64 {
    let of_weights: f64 = weights.iter().map(|s| s.divergence(COARSE)).sum();
    (coarse - of_weights).max(0.0)
}

/// Surveys a part of a model on tokens: whole sequences of the cut. `done` is called with the blocks that were gone
/// through and their number.
///
/// # Errors
/// [`BudgetError`].
pub fn survey(
    task: &Task<'_>,
    tokens: &[Token],
    done: &mut (dyn FnMut(u32, u32) + Send),
) -> Result<Survey, BudgetError> {
    let model = task.subject.model;
    let key = format!("{}.block_count", model.architecture);
    let blocks = model.metadata.get(&key).and_then(|v| v.as_u64());
    let blocks = blocks.unwrap_or(0) as u32;
    let stream = streams_of(&task.subject, tokens, task.scratch)?;
    let mut surveyor = Surveyor::new(task, blocks, stream)?;
    surveyor.embedding(tokens)?;
    let kept = Kept::new(task.kept)?;
    for number in surveyor.resume(&kept)?..blocks {
        surveyor.block(number)?;
        if number + 1 < blocks {
            surveyor.keep(&kept, number)?;
        }
        done(number + 1, blocks);
    }
    finish(surveyor)
}

impl From<EmbeddingError> for BudgetError {
    fn from(error: EmbeddingError) -> BudgetError {
        match error {
            EmbeddingError::Tensor(e) => e.into(),
            EmbeddingError::Io(e) => e.into(),
            EmbeddingError::Missing => BudgetError::NothingToChoose,
        }
    }
}

impl From<WalkError> for BudgetError {
    fn from(error: WalkError) -> BudgetError {
        match error {
            WalkError::Llama(e) => e.into(),
            WalkError::Io(e) => e.into(),
            WalkError::Method(e) => e.into(),
            other => BudgetError::Walk(other),
        }
    }
}
