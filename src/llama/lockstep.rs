//! Two models of the same layers evaluated side by side, so that what their layers read can be
//! compared and the second be fitted to the first.

use std::ops::ControlFlow;
use std::sync::mpsc::sync_channel;

use super::activations::{Activation, Probe};
use super::context::BatchToken;
use super::error::LlamaError;

/// What a layer reads in both models.
#[derive(Debug)]
pub struct Pair<'a> {
    /// Rows of the first model's input.
    pub first: &'a [f32],
    /// The same of the second model.
    pub second: Activation<'a>,
}

/// Called with each wanted input, in the order of evaluation; breaking ends both evaluations.
pub type PairObserver<'a> = dyn FnMut(Pair<'_>) -> ControlFlow<()> + 'a;

/// Evaluates the same tokens in both models and shows the inputs that `wanted` has as true, ahead
/// of their readers where that is possible (see [`Probe::run_ahead`]). One model computes while
/// the other waits.
///
/// # Errors
/// As [`Probe::run_ahead`], or the models' layers differ.
pub fn lockstep(
    first: &mut Probe<'_>,
    second: &mut Probe<'_>,
    tokens: &[BatchToken],
    wanted: &[bool],
    observer: &mut PairObserver<'_>,
) -> Result<(), LlamaError> {
    if std::ptr::eq(first.model(), second.model()) {
        // Contexts of one model evaluate one after the other, and these would wait for each other.
        return Err(LlamaError::Activation {
            weight: first.inputs().first().map_or("", |i| i.name()).to_string(),
            reason: "a model can't run in lockstep with itself",
        });
    }
    if first.inputs() != second.inputs() {
        return Err(differ("the first layer"));
    }
    let (go, may_go) = sync_channel::<()>(1);
    let (show, shown) = sync_channel::<(usize, Vec<f32>)>(1);
    std::thread::scope(|scope| {
        let names = second.inputs().to_vec();
        let other = scope.spawn(move || {
            if may_go.recv().is_err() {
                return Ok(());
            }
            first.run_ahead(tokens, wanted, &mut |activation| {
                let rows = (activation.input, activation.values.to_vec());
                if show.send(rows).is_err() || may_go.recv().is_err() {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })
        });
        let mut mismatch = None;
        let result = second.run_ahead(tokens, wanted, &mut |activation| {
            // Nobody listens any more where the other evaluation has failed.
            let _ = go.send(());
            let Ok((input, rows)) = shown.recv() else {
                return ControlFlow::Break(());
            };
            if input != activation.input || rows.len() != activation.values.len() {
                mismatch = Some(names[activation.input].name().to_string());
                return ControlFlow::Break(());
            }
            observer(Pair {
                first: &rows,
                second: activation,
            })
        });
        drop((go, shown));
        let other = match other.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        if let Some(weight) = mismatch {
            return Err(differ(&weight));
        }
        other.and(result)
    })
}

fn differ(weight: &str) -> LlamaError {
    LlamaError::Activation {
        weight: weight.to_string(),
        reason: "the two models evaluate different layers",
    }
}
