//! The predicted and measured result of a target.

use std::path::Path;

use dwindle_formats::output::Scratch;
use serde::Serialize;

use super::choosing::CHUNKS;
use super::meter::Meter;
use super::{Error, Study, Text, Workbench};
use crate::eval::Evaluation;
use crate::target::{Chosen, rungs};

/// What was predicted and what was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The predicted mean KL divergence.
    pub predicted_kld: f64,
    /// The measured one, of the file, on the beginning of the text.
    pub measured_kld: f64,
    /// Its standard error.
    pub error: f64,
    /// The text that it was measured on.
    pub text: String,
    /// Whether nothing was chosen by that text.
    pub held_out: bool,
    /// All that was measured.
    pub measured: Evaluation,
    /// The comparison on a second text.
    pub gate: Option<Gate>,
}

/// The file beside the largest of llama-quantize's that is not larger, on a text that nothing was
/// chosen by.
#[derive(Debug, Clone, Serialize)]
pub struct Gate {
    /// llama-quantize's file type.
    pub file_type: String,
    /// The bytes of its file.
    pub bytes: u64,
    /// Its mean KL divergence.
    pub kld: f64,
    /// Ours.
    pub own_kld: f64,
}

impl Outcome {
    /// Measures a file.
    pub(super) fn of(
        bench: &Workbench<'_>,
        study: &Study,
        (chosen, file): (&Chosen, &Path),
        (text, held_out): (&Text, bool),
        gate: Option<&Text>,
    ) -> Result<Outcome, Error> {
        let evaluation = Meter::new(bench, study, text, CHUNKS)?.evaluate(file)?;
        let divergence = evaluation
            .divergence
            .as_ref()
            .ok_or(Error::NothingCompared)?;
        let measured = divergence.kld;
        let gate = gate
            .map(|text| compare((bench, study), text, chosen, file))
            .transpose()?;
        Ok(Outcome {
            predicted_kld: chosen.assignment.kld,
            measured_kld: measured.value,
            error: measured.error,
            text: text.name(),
            held_out,
            measured: evaluation,
            gate: gate.flatten(),
        })
    }
}

fn compare(
    (bench, study): (&Workbench<'_>, &Study),
    text: &Text,
    chosen: &Chosen,
    file: &Path,
) -> Result<Option<Gate>, Error> {
    let all = rungs(&bench.task()).into_iter();
    let smaller = all.filter(|rung| rung.bytes <= chosen.bytes);
    let Some(rung) = smaller.max_by_key(|rung| rung.bytes) else {
        bench.progress.note(
            "none of llama-quantize's file types is as small, so the second text compares nothing",
        );
        return Ok(None);
    };
    let dir = Scratch::new_in(bench.scratch)?;
    let plain = dir.path().join("plain.gguf");
    bench.write(&rung.plan, &plain)?;
    let meter = Meter::new(bench, study, text, CHUNKS)?;
    Ok(Some(Gate {
        file_type: rung.file_type,
        bytes: rung.bytes,
        kld: meter.kld(&plain)?.value,
        own_kld: meter.kld(file)?.value,
    }))
}
