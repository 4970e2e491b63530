//! The inputs of linear layers, as an observer sees them.

use super::super::error::LlamaError;
use super::super::model::Model;
use super::super::swap;

/// A linear layer that reads an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// The weight's name (`blk.0.attn_q.weight`).
    pub weight: String,
    /// Its output elements for each row; in a stack, of one slice.
    pub outputs: usize,
}

/// What one or more linear layers read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearInput {
    /// Elements of a row.
    pub width: usize,
    /// Matrices that the weights stack: experts, or heads; 1 in an ordinary layer.
    pub slices: usize,
    /// The layers, in the order of evaluation.
    pub readers: Vec<Reader>,
}

impl LinearInput {
    /// The name of the first weight that reads it; of a node without readers, none.
    pub fn name(&self) -> &str {
        self.readers.first().map_or("", |r| &r.weight)
    }
}

/// Rows of one input.
#[derive(Debug)]
pub struct Activation<'a> {
    /// Which of [`Probe::inputs`](super::Probe::inputs) it is.
    pub input: usize,
    /// Rows one after another, each of the input's width.
    pub values: &'a [f32],
    /// For each slice the rows that go to it; `None` where there is one slice, which all go to.
    /// A row may go to several experts, or to none.
    pub slices: Option<&'a [Vec<u32>]>,
    /// The model, as long as no reader of the input has been computed.
    ahead: Option<&'a Model>,
}

impl<'a> Activation<'a> {
    /// Rows whose readers have been computed, or that come from no model.
    pub fn of_rows(
        input: usize,
        values: &'a [f32],
        slices: Option<&'a [Vec<u32>]>,
    ) -> Activation<'a> {
        Activation {
            input,
            values,
            slices,
            ahead: None,
        }
    }

    /// The same, shown before this model's evaluation, which waits, computes a reader of it.
    pub(super) fn ahead(self, model: &'a Model) -> Activation<'a> {
        Activation {
            ahead: Some(model),
            ..self
        }
    }

    /// Whether no reader of the input has been computed yet.
    pub fn is_ahead(&self) -> bool {
        self.ahead.is_some()
    }

    /// Gives a reader of an input that is shown ahead other values; see [`Model::replace`].
    ///
    /// # Errors
    /// The input is not shown ahead, or the values don't fit the weight.
    pub fn replace(&self, reader: &Reader, values: &[f32]) -> Result<(), LlamaError> {
        let Some(model) = self.ahead else {
            return Err(LlamaError::Replace {
                weight: reader.weight.clone(),
                reason: "it is computed already".into(),
            });
        };
        // SAFETY: this evaluation holds the model's lock and waits for the observer; what it has
        // computed ends before the weight's first reader.
        unsafe { swap::replace(model, &reader.weight, values) }
    }
}
