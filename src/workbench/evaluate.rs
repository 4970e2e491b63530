//! Measures a checkpoint and its files, given their names.

use std::path::Path;

use dwindle_formats::container::{Container, verify as verify_chunks};
use dwindle_formats::output::{Claims, folder_of};

use super::running::load;
use super::{Error, Text};
use crate::eval::{EvalOptions, Evaluation};
use crate::llama::placement::Placement;
use crate::mapped::Mapping;
use crate::measure::{
    CalibrateOptions, Calibration, CalibrationText, Outputs, Predictions, calibrate as run,
};
use crate::progress::{Progress, Unit};
use crate::runtime::identity;

/// Measures what the layers of a checkpoint read on a text, and writes statistics for
/// [`Compress::statistics`](super::Compress::statistics).
///
/// # Errors
/// [`Error`]; an existing file is then untouched.
pub fn calibrate(
    checkpoint: impl AsRef<Path>,
    text: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &CalibrateOptions,
    progress: &dyn Progress,
) -> Result<Calibration, Error> {
    let (checkpoint, output) = (checkpoint.as_ref(), output.as_ref());
    Claims::new()
        .reads("the checkpoint", [checkpoint])
        .reads("the text", [text.as_ref()])
        .writes([output])
        .check()?;
    let text = Text::read(text.as_ref())?;
    let identity = identity(checkpoint)?;
    let model = load(checkpoint, &Placement::default())?;
    let outputs = Outputs {
        statistics: Some(output),
        ..Outputs::default()
    };
    let words = CalibrationText {
        words: &text.words,
        name: &text.name(),
    };
    progress.begin("calibrating", 0, Unit::Share);
    let done = run(&model, identity, words, options, outputs, &mut |p| {
        progress.reach(p.done, p.total);
    })?;
    progress.end();
    Ok(done)
}

/// Measures how far a file's predictions on a text are from its checkpoint's: perplexity and KL
/// divergence, as llama-perplexity does.
///
/// # Errors
/// [`Error`].
pub fn evaluate(
    file: impl AsRef<Path>,
    checkpoint: impl AsRef<Path>,
    text: impl AsRef<Path>,
    options: &EvalOptions,
) -> Result<Evaluation, Error> {
    let text = Text::read(text.as_ref())?;
    let scratch = folder_of(file.as_ref());
    let original = load(checkpoint.as_ref(), &Placement::default())?;
    let predictions = Predictions::of(&original, &text.words, options, scratch);
    let predictions = predictions.map_err(|e| text.blame(e))?;
    drop(original);
    Ok(predictions.compare(&load(file.as_ref(), &Placement::default())?)?)
}

/// Checks every checksum of a file that dwindle wrote. Gives what is damaged, in file order.
///
/// # Errors
/// A file that is not there, or that dwindle did not write.
pub fn verify(file: impl AsRef<Path>, progress: &dyn Progress) -> Result<Vec<String>, Error> {
    let path = file.as_ref();
    let bytes = Mapping::open(path)?;
    let container = Container::read(&bytes).map_err(|e| Error::Unreadable {
        path: path.to_path_buf(),
        reason: e.to_string(),
    })?;
    progress.begin("verifying", bytes.len() as u64, Unit::Bytes);
    let advance = |n| progress.advance(n);
    let damage = verify_chunks(&container, &bytes, advance, |range| bytes.release(range));
    progress.end();
    Ok(damage.iter().map(ToString::to_string).collect())
}
