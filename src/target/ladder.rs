//! The files that llama-quantize would write, to compare ours with.

use dwindle_formats::container::plain_len;

use super::{BudgetError, Task};
use crate::plan::{Base, Plan, PlanError, Recipe, resolve};

/// Commonly used file types, as a ladder.
const LADDER: &[&str] = &[
    "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "iq4_nl", "iq4_xs", "q4_0", "q3_k_l",
    "q3_k_m", "q3_k_s", "iq3_m", "iq3_s", "iq3_xs", "iq3_xxs", "q2_k", "iq2_m", "iq2_s", "iq2_xs",
    "iq2_xxs", "iq1_m", "iq1_s",
];

/// A file of one file type.
#[derive(Debug, Clone)]
pub struct Rung {
    /// The file type's name.
    pub file_type: String,
    /// The plan that gives its tensors llama-quantize's bytes.
    pub plan: Plan,
    /// Bytes of the file as llama-quantize writes it, without our checksums.
    pub bytes: u64,
}

/// The rung of a file type.
///
/// # Errors
/// [`BudgetError::Plan`] where the model can't have it: some types need importance weights.
pub fn rung(task: &Task<'_>, base: &Base) -> Result<Rung, BudgetError> {
    let recipe = Recipe::of(*base);
    let plan = resolve(&recipe, &task.subject)?;
    Ok(Rung {
        file_type: base.to_string(),
        bytes: plain_len(&plan.metadata, &plan.stored()).ok_or(BudgetError::Overflow)?,
        plan,
    })
}

/// The bytes of the smallest of some file types; none where that depends on importance weights that are not
/// known yet.
///
/// # Errors
/// A file type that the model can't have.
pub fn smallest(task: &Task<'_>, bases: &[Base]) -> Result<Option<u64>, BudgetError> {
    let mut least: Option<u64> = None;
    for base in bases {
        match rung(task, base) {
            Ok(found) => least = Some(least.map_or(found.bytes, |b| b.min(found.bytes))),
            Err(BudgetError::Plan(PlanError::ImportanceMissing { .. })) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
    Ok(least)
}

/// The rungs that a model can have, of the commonly used file types.
pub fn rungs(task: &Task<'_>) -> Vec<Rung> {
    let all = LADDER.iter().filter_map(|name| name.parse().ok());
    all.filter_map(|base| rung(task, &base).ok()).collect()
}
