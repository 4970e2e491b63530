//! The tensors of a checkpoint by their names, to take the parts of quantized ones from.

use std::collections::HashMap;

use dwindle_mapped::Mapping;
use safetensors::Dtype;

use crate::Error;
use crate::raw::Raw;

/// What is left to take.
pub(super) struct Bag<'a> {
    raws: HashMap<String, Raw>,
    /// The files behind them.
    pub(super) shards: &'a [Mapping],
}

impl<'a> Bag<'a> {
    pub(super) fn new(raws: Vec<Raw>, shards: &'a [Mapping]) -> Bag<'a> {
        let raws = raws.into_iter().map(|raw| (raw.name.clone(), raw));
        Bag {
            raws: raws.collect(),
            shards,
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Raw> {
        self.raws.get(name)
    }

    pub(super) fn take(&mut self, name: &str) -> Option<Raw> {
        self.raws.remove(name)
    }

    /// Takes a part that must be there.
    pub(super) fn part(&mut self, of: &str, name: &str) -> Result<Raw, Error> {
        let part = self
            .take(name)
            .ok_or_else(|| bad(of, format!("its part `{name}` is missing")))?;
        match part.shape.contains(&0) {
            true => Err(bad(of, format!("its part `{name}` is empty"))),
            false => Ok(part),
        }
    }
}

/// Holds a part against the type and the dimensions that it must have.
pub(super) fn expect(of: &str, part: &Raw, dtype: Dtype, shape: &[usize]) -> Result<(), Error> {
    if part.dtype == dtype && part.shape == shape {
        return Ok(());
    }
    Err(bad(
        of,
        format!(
            "its part `{}` is {:?} of shape {:?}, expected {dtype:?} of shape {shape:?}",
            part.name, part.dtype, part.shape
        ),
    ))
}

/// A part whose dimensions fit no other's.
pub(super) fn unfit(of: &str, part: &Raw) -> Error {
    bad(
        of,
        format!(
            "its part `{}` has type {:?} and shape {:?}, which don't go with the other parts",
            part.name, part.dtype, part.shape
        ),
    )
}

pub(super) fn bad(tensor: &str, problem: String) -> Error {
    Error::Codes {
        tensor: tensor.to_string(),
        problem,
    }
}
