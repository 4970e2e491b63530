//! Observes the inputs of layers of one model over a text.

use std::ops::ControlFlow;

use super::side_by_side::{FitError, FitText, cut};
use crate::llama::activations::{LinearInput, Probe};
use crate::llama::context::{ContextOptions, default_threads};
use crate::llama::model::Model;

/// One token in this many goes through to the output.
pub(super) const STRIDE: usize = 4;

/// Called with rows of an input; an error ends the evaluation.
pub(super) type Observer<'a> = dyn FnMut(&LinearInput, &[f32]) -> Result<(), FitError> + 'a;

/// Evaluates chunks of a text and shows the inputs that are wanted of each chunk: rows of all
/// tokens, past the last attention of every [`STRIDE`]th.
///
/// # Errors
/// [`FitError`]: a text that is too short, llama.cpp's words, or those of the observer.
pub(super) fn observe(
    model: &Model,
    text: &FitText<'_>,
    is_wanted: impl Fn(&LinearInput) -> bool,
    observer: &mut Observer<'_>,
) -> Result<(), FitError> {
    let chunks = cut(model, text)?;
    let ctx = chunks.ctx as u32;
    let mut probe = Probe::new(
        model,
        &ContextOptions {
            ctx,
            batch: ctx,
            ubatch: ctx,
            outputs: ctx,
            threads: Some(text.options.threads.unwrap_or_else(default_threads)),
            ..ContextOptions::default()
        },
    )?;
    let inputs = probe.inputs().to_vec();
    let wanted: Vec<bool> = inputs.iter().map(is_wanted).collect();
    for chunk in 0..chunks.count {
        probe.clear();
        let mut tokens = chunks.batch(model, chunk..chunk + 1, 0..chunks.ctx);
        let numbered = tokens.iter_mut().enumerate();
        numbered.for_each(|(i, token)| token.logits = i % STRIDE == 0);
        let mut failed = None;
        probe.run(&tokens, &wanted, &mut |activation| match observer(
            &inputs[activation.input],
            activation.values,
        ) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(())
}
