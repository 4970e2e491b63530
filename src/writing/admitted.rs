//! Nothing is written that could not be run: the checks of loading, before the first byte.

use dwindle_formats::container::{Form, StoredTensor};
use dwindle_formats::gguf::TensorType;
use dwindle_plan::Plan;

use crate::llama::admission::{Described, Refusal, admit};

/// Checks the model that a plan writes.
pub(super) fn admitted(plan: &Plan) -> Result<(), Refusal> {
    let steps = plan.steps.iter().map(|step| described(&step.stored));
    admit(&plan.metadata, steps)
}

fn described(stored: &StoredTensor) -> Described<'_> {
    let ty = match (&stored.form, stored.parts.first()) {
        (Form::Dense, Some(part)) => part.ty,
        // Factors stand for a matrix of any type.
        _ => TensorType::F16,
    };
    Described {
        name: &stored.name,
        shape: &stored.shape,
        ty,
    }
}
