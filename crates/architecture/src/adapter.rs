//! A LoRA adapter in GGUF's terms: its matrices go the ways of the weights that they are added to.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

use dwindle_checkpoint::lora::{Lora, Update};
use dwindle_checkpoint::{Source, SourceTensor};
use dwindle_formats::gguf::{Metadata, TensorType};

use super::{Assembly, Error, Model, ModelTensor};

/// A matrix of an adapter's file, in F32.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterTensor {
    /// The weight's name with `.lora_a` or `.lora_b` behind it.
    pub name: String,
    /// Dimensions, row length first.
    pub shape: Vec<u64>,
    /// Rows one after another.
    pub bytes: Vec<u8>,
}

/// One of the two matrices of each tensor of a checkpoint; nothing, of those that nothing is added to.
struct Halves {
    tensors: Vec<SourceTensor>,
    bytes: Vec<Vec<u8>>,
}

impl Source for Halves {
    fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    fn bytes(&self, index: usize, span: Range<usize>) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes[index][span])
    }

    fn release(&self, _: usize) {}
}

/// The metadata and the matrices of the file that llama.cpp loads beside a model.
///
/// # Errors
/// When the adapter changes what the model lacks, or a weight that llama.cpp has in another form than products can be
/// given.
pub fn adapter(
    lora: &Lora,
    source: &dyn Source,
    model: &Model,
) -> Result<(Metadata, Vec<AdapterTensor>), Error> {
    let updates: Vec<Option<Update>> = source
        .tensors()
        .iter()
        .map(|tensor| {
            let update = lora.update(&tensor.name);
            update.as_ref().map_or(Ok(()), |u| u.check(tensor))?;
            Ok(update)
        })
        .collect::<Result<_, Error>>()?;
    let is_there = |weight: &&str| source.tensors().iter().any(|t| t.name == **weight);
    if let Some(weight) = lora.weights().find(|weight| !is_there(weight)) {
        return Err(dwindle_checkpoint::Error::AdapterWeight {
            weight: weight.to_string(),
            found: "is not in the checkpoint".into(),
        }
        .into());
    }
    let alpha = lora.alpha();
    let halves = |outputs| halves(source, &updates, alpha, outputs);
    let (inputs, outputs) = (halves(false), halves(true));
    let mut tensors = Vec::new();
    for tensor in &model.tensors {
        let used = tensor.assembly.sources();
        let ranks: Vec<u64> = used
            .iter()
            .filter_map(|i| updates[*i].as_ref().map(|u| u.rank as u64))
            .collect();
        let Some(rank) = ranks.first() else {
            continue;
        };
        let refused = || Error::AdapterForm {
            tensor: tensor.name.clone(),
        };
        if ranks.len() < used.len() || ranks.iter().any(|r| r != rank) {
            return Err(refused());
        }
        let a = of_inputs(tensor, *rank).ok_or_else(refused)?;
        let b = of_outputs(tensor, *rank).ok_or_else(refused)?;
        for (part, half, ending) in [(a, &inputs, "lora_a"), (b, &outputs, "lora_b")] {
            tensors.push(AdapterTensor {
                name: format!("{}.{ending}", tensor.name),
                bytes: part.rows(half, 0..part.row_count()).into_owned(),
                shape: part.shape,
            });
        }
    }
    refuse_unused(source, model, &updates)?;
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", model.architecture.as_str());
    metadata.set("general.type", "adapter");
    metadata.set("adapter.type", "lora");
    metadata.set("adapter.lora.alpha", alpha);
    Ok((metadata, tensors))
}

/// Refuses an adapter of tensors that the model is without.
fn refuse_unused(
    source: &dyn Source,
    model: &Model,
    updates: &[Option<Update>],
) -> Result<(), Error> {
    let used = model.tensors.iter().flat_map(|t| t.assembly.sources());
    let used: HashSet<usize> = used.collect();
    let tensors = source.tensors().iter().zip(updates).enumerate();
    let mut unused = tensors.filter(|(at, (_, update))| update.is_some() && !used.contains(at));
    match unused.next() {
        None => Ok(()),
        Some((_, (tensor, _))) => Err(dwindle_checkpoint::Error::AdapterWeight {
            weight: tensor.name.clone(),
            found: "llama.cpp's language model has no place for".into(),
        }
        .into()),
    }
}

/// The inputs or the outputs of each tensor. llama.cpp multiplies by the adapter's scale over the rank; where a
/// weight's is another, its outputs make up for that.
fn halves(source: &dyn Source, updates: &[Option<Update>], alpha: f32, outputs: bool) -> Halves {
    let mut halves = Halves {
        tensors: Vec::new(),
        bytes: Vec::new(),
    };
    for (tensor, update) in source.tensors().iter().zip(updates) {
        let (shape, values) = match update {
            None => (vec![0, 0], Vec::new()),
            Some(update) if outputs => {
                let ratio = update.scale / (alpha / update.rank as f32);
                let values = update.outputs.iter().map(|v| v * ratio).collect();
                (vec![update.rank as u64, update.height as u64], values)
            }
            Some(update) => {
                let shape = vec![update.width as u64, update.rank as u64];
                (shape, update.inputs.clone())
            }
        };
        halves.tensors.push(SourceTensor {
            name: tensor.name.clone(),
            ty: TensorType::F32,
            shape,
        });
        let bytes = values.into_iter().flat_map(f32::to_le_bytes);
        halves.bytes.push(bytes.collect());
    }
    halves
}

/// What a weight's rows are made by, with the rank in place of the row length.
fn of_outputs(tensor: &ModelTensor, rank: u64) -> Option<ModelTensor> {
    let assembly = match &tensor.assembly {
        assembly @ (Assembly::Copy(_) | Assembly::PermuteRotary { .. } | Assembly::Stack(_)) => {
            assembly.clone()
        }
        Assembly::Select { of, rows } => Assembly::Select {
            of: Box::new(of_outputs(of, rank)?),
            rows: rows.clone(),
        },
        Assembly::Alternate { of, first } => Assembly::Alternate {
            of: Box::new(of_outputs(of, rank)?),
            first: *first,
        },
        Assembly::Columns { of, .. } => of_outputs(of, rank)?.assembly,
        // The checkpoint has the weight transposed; the adapter's matrices lie as everywhere.
        Assembly::Transpose(of) => match of.assembly {
            Assembly::Copy(tensor) if of.shape.len() == 2 => Assembly::Copy(tensor),
            _ => return None,
        },
        _ => return None,
    };
    let mut shape = tensor.shape.clone();
    *shape.first_mut()? = rank;
    Some(ModelTensor {
        shape,
        assembly,
        ..tensor.clone()
    })
}

/// What a weight's columns are made by, with the rank in place of the rows of each matrix.
fn of_inputs(tensor: &ModelTensor, rank: u64) -> Option<ModelTensor> {
    let all = tensor.assembly.sources();
    let assembly = match &tensor.assembly {
        Assembly::Columns { of, each, blocks } => Assembly::Columns {
            of: Box::new(of_inputs(of, rank)?),
            each: *each,
            blocks: blocks.clone(),
        },
        Assembly::Stack(_) => Assembly::Stack(all),
        _ => Assembly::Copy(*all.first()?),
    };
    let mut shape = tensor.shape.clone();
    *shape.get_mut(1)? = rank;
    Some(ModelTensor {
        shape,
        assembly,
        ..tensor.clone()
    })
}
