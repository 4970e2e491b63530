//! A source with an adapter merged into it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use dwindle_formats::gguf::TensorType;

use super::floats::floats;
use super::lora::{Lora, Update};
use super::{Error, Source, SourceFile, SourceTensor};

/// A source to whose weights an adapter's products are added, in F32.
pub struct Merged {
    base: Box<dyn Source>,
    tensors: Vec<SourceTensor>,
    files: Vec<SourceFile>,
    updates: HashMap<usize, Update>,
}

impl Merged {
    /// Adds an adapter to a source.
    ///
    /// # Errors
    /// When the source lacks a weight, or has it in another shape or in codes.
    pub fn new(base: Box<dyn Source>, lora: &Lora) -> Result<Merged, Error> {
        let mut tensors = base.tensors().to_vec();
        let mut updates = HashMap::new();
        for weight in lora.weights() {
            let place = tensors.iter().position(|t| t.name == weight);
            let found = place.zip(lora.update(weight));
            let Some((place, update)) = found else {
                return Err(Error::AdapterWeight {
                    weight: weight.to_string(),
                    found: "is not in the checkpoint".into(),
                });
            };
            let tensor = &mut tensors[place];
            update.check(tensor)?;
            tensor.ty = TensorType::F32;
            updates.insert(place, update);
        }
        let files = [base.files(), lora.files()].concat();
        Ok(Merged {
            base,
            tensors,
            files,
            updates,
        })
    }

    /// Brings tensors that one weight of a model is put together of into one type.
    pub fn level(&mut self, together: &[usize]) {
        if together.iter().any(|at| self.updates.contains_key(at)) {
            for at in together {
                self.tensors[*at].ty = TensorType::F32;
            }
        }
    }

    /// Rows of a weight with what is added to them.
    fn rows(&self, index: usize, update: Option<&Update>, rows: Range<usize>) -> Vec<f32> {
        let stored = &self.base.tensors()[index];
        let columns = stored.shape.first().copied().unwrap_or(1) as usize;
        let unit = stored.ty.block_bytes() as usize;
        let span = rows.start * columns * unit..rows.end * columns * unit;
        let mut values = floats(&self.base.bytes(index, span), stored.ty);
        for (row, values) in rows.zip(values.chunks_exact_mut(columns.max(1))) {
            if let Some(update) = update {
                update.add_to(row, values);
            }
        }
        values
    }
}

impl Update {
    /// Holds it against the weight that it is added to.
    ///
    /// # Errors
    /// When the weight has another shape, or is in codes.
    pub fn check(&self, tensor: &SourceTensor) -> Result<(), Error> {
        let bad = |found: String| Error::AdapterWeight {
            weight: tensor.name.clone(),
            found,
        };
        let own = match self.transposed {
            true => [self.height, self.width],
            false => [self.width, self.height],
        };
        if tensor.shape != own.map(|n| n as u64) {
            let found: Vec<u64> = tensor.shape.iter().rev().copied().collect();
            let expected = [own[1], own[0]];
            return Err(bad(format!(
                "has shape {found:?}, the adapter's is {expected:?}"
            )));
        }
        match tensor.ty {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => Ok(()),
            ty => Err(bad(format!("is in {ty}, to which nothing can be added"))),
        }
    }

    /// Adds its part to a row of the weight, as that lies in the checkpoint.
    fn add_to(&self, row: usize, values: &mut [f32]) {
        for k in 0..self.rank {
            if self.transposed {
                let factor = self.scale * self.inputs[k * self.width + row];
                for (at, value) in values.iter_mut().enumerate() {
                    *value += factor * self.outputs[at * self.rank + k];
                }
            } else {
                let factor = self.scale * self.outputs[row * self.rank + k];
                let inputs = &self.inputs[k * self.width..][..self.width];
                for (value, input) in values.iter_mut().zip(inputs) {
                    *value += factor * input;
                }
            }
        }
    }
}

impl Source for Merged {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn files(&self) -> &[SourceFile] {
        &self.files
    }

    fn bytes(&self, index: usize, span: Range<usize>) -> Cow<'_, [u8]> {
        let update = self.updates.get(&index);
        if update.is_none() && self.tensors[index].ty == self.base.tensors()[index].ty {
            return self.base.bytes(index, span);
        }
        let row = 4 * self.tensors[index].shape.first().copied().unwrap_or(1) as usize;
        let rows = span.start / row.max(1)..span.end.div_ceil(row.max(1));
        let first = rows.start * row;
        let values = self.rows(index, update, rows);
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Cow::Owned(bytes[span.start - first..span.end - first].to_vec())
    }

    fn release(&self, index: usize) {
        self.base.release(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_added_row_by_row_whichever_way_a_weight_lies() {
        let mut update = Update {
            rank: 1,
            width: 3,
            height: 2,
            inputs: vec![1.0, 2.0, 3.0],
            outputs: vec![10.0, 20.0],
            scale: 0.5,
            transposed: false,
        };
        let mut row = [1.0, 1.0, 1.0];
        update.add_to(1, &mut row);
        assert_eq!(row, [11.0, 21.0, 31.0]);
        update.transposed = true;
        let mut row = [1.0, 1.0];
        update.add_to(2, &mut row);
        assert_eq!(row, [16.0, 31.0]);
    }
}
