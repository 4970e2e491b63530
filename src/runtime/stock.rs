//! A model as the dense GGUF that stock llama.cpp knows, made tensor by tensor on demand.

use dwindle_formats::container::{Container, ContainerError, Form, StoredTensor};
use dwindle_formats::gguf::{Metadata, TensorLayout, TensorType};

use crate::architecture::Model;
use crate::checkpoint::Source;
use crate::ggml;
use crate::mapped::Mapping;
use crate::plan::{Plan, TensorError};
use crate::writing::multiply_out;
use crate::writing::store_rows;

/// The type of a tensor whose factors are multiplied out.
const MULTIPLIED_OUT: TensorType = TensorType::F16;

/// Why a dense tensor can't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the messages say what the fields are
pub enum StockError {
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(
        "the checkpoint has no tensor `{tensor}` of shape {shape:?}; is it the one that the file was made from, and did the file keep all columns, heads and blocks?"
    )]
    NotInCheckpoint { tensor: String, shape: Vec<u64> },
    #[error("tensor `{tensor}` has {elements} elements, more than can be allocated")]
    TooLarge { tensor: String, elements: usize },
    #[error("tensor `{tensor}`: the factors' product exceeds the range of {MULTIPLIED_OUT}")]
    Range { tensor: String },
}

impl StockError {
    fn ggml(tensor: &StoredTensor, source: ggml::GgmlError) -> StockError {
        TensorError::of(&tensor.name)(source).into()
    }
}

type Produce<'a> = dyn Fn(usize) -> Result<Vec<u8>, StockError> + Send + Sync + 'a;

/// A stock GGUF file that is nowhere on disk: its description, and a function that makes each
/// tensor.
pub struct StockModel<'a> {
    /// The model's metadata, without dwindle's own keys.
    pub metadata: Metadata,
    /// What the tensors are, in file order.
    pub tensors: Vec<TensorLayout>,
    produce: Box<Produce<'a>>,
}

impl<'a> StockModel<'a> {
    /// A file of dwindle, its digests checked as tensors are made, its factors multiplied out.
    pub fn from_container(container: &'a Container, bytes: &'a Mapping) -> StockModel<'a> {
        let mut metadata = container.header.metadata.clone();
        metadata.retain(|key| !key.starts_with("dwindle."));
        let tensors = &container.plan.tensors;
        let layouts = tensors.iter().map(|t| TensorLayout {
            name: t.name.clone(),
            shape: t.shape.clone(),
            ty: match t.form {
                Form::Dense => t.parts[0].ty,
                _ => MULTIPLIED_OUT,
            },
        });
        StockModel::new(metadata, layouts.collect(), move |i| {
            let dense = dense_bytes(container, bytes, i)?;
            for part in container.parts_of(i) {
                bytes.release(container.range(part));
            }
            Ok(dense)
        })
    }

    /// A checkpoint as a plan without factors stores it.
    pub fn from_plan(plan: &'a Plan, model: &'a Model, source: &'a dyn Source) -> StockModel<'a> {
        let layouts = plan.steps.iter().map(|step| TensorLayout {
            name: step.stored.name.clone(),
            shape: step.stored.shape.clone(),
            ty: step.stored.parts[0].ty,
        });
        StockModel::new(plan.metadata.clone(), layouts.collect(), move |i| {
            let tensor = &model.tensors[i];
            let ty = plan.steps[i].stored.parts[0].ty;
            let result = store_rows(tensor, source, ty, 0..tensor.row_count(), None);
            tensor.release(source);
            let (bytes, _) = result.map_err(TensorError::of(&tensor.name))?;
            Ok(bytes.into_owned())
        })
    }

    fn new(
        metadata: Metadata,
        tensors: Vec<TensorLayout>,
        produce: impl Fn(usize) -> Result<Vec<u8>, StockError> + Send + Sync + 'a,
    ) -> StockModel<'a> {
        StockModel {
            metadata,
            tensors,
            produce: Box::new(produce),
        }
    }

    /// Bytes of all tensors, without padding.
    pub fn data_bytes(&self) -> u64 {
        self.tensors
            .iter()
            .filter_map(|t| t.ty.bytes(&t.shape))
            .sum()
    }

    /// The bytes of a tensor.
    ///
    /// # Errors
    /// Damaged data, or values out of range.
    pub fn tensor(&self, index: usize) -> Result<Vec<u8>, StockError> {
        (self.produce)(index)
    }
}

/// The bytes of a tensor in the type that [`StockModel`] declares.
fn dense_bytes(container: &Container, bytes: &[u8], index: usize) -> Result<Vec<u8>, StockError> {
    let tensor = &container.plan.tensors[index];
    if tensor.form == Form::Dense {
        return Ok(container.decode(bytes, container.parts_of(index).start)?);
    }
    let dense = decode_values(container, bytes, index)?;
    if dense.iter().any(|v| v.abs() > half::f16::MAX.to_f32()) {
        return Err(StockError::Range {
            tensor: tensor.name.clone(),
        });
    }
    let mut out = vec![0; dense.len() * 2];
    let row_len = tensor.shape[0] as usize;
    ggml::quantize(MULTIPLIED_OUT, &dense, row_len, None, &mut out)
        .map_err(|e| StockError::ggml(tensor, e))?;
    Ok(out)
}

/// The values of a tensor of the plan, factors multiplied out.
pub(crate) fn decode_values(
    container: &Container,
    bytes: &[u8],
    index: usize,
) -> Result<Vec<f32>, StockError> {
    let tensor = &container.plan.tensors[index];
    let values = |tensor: usize| -> Result<Vec<Vec<f32>>, StockError> {
        let stored = &container.plan.tensors[tensor];
        let parts = stored.parts.iter().zip(container.parts_of(tensor));
        parts
            .map(|(part, at)| {
                let bytes = container.decode(bytes, at)?;
                let mut out = vec![0f32; part.shape.iter().product::<u64>() as usize];
                ggml::dequantize(part.ty, &bytes, &mut out)
                    .map_err(|e| StockError::ggml(stored, e))?;
                Ok(out)
            })
            .collect()
    };
    check_size(tensor)?;
    let lender = tensor
        .form
        .lender()
        .and_then(|name| container.index_of(name));
    match (&tensor.form, lender) {
        (Form::Dense, _) => Ok(values(index)?.swap_remove(0)),
        (Form::Slice { index: slice, .. }, Some(holder)) => Ok(multiply_out(
            &container.plan.tensors[holder],
            &values(holder)?,
            None,
            *slice as usize,
        )),
        (_, Some(lender)) => {
            let input = values(lender)?.swap_remove(0);
            Ok(multiply_out(tensor, &values(index)?, Some(&input), 0))
        }
        (_, None) => Ok(multiply_out(tensor, &values(index)?, None, 0)),
    }
}

/// Small factors may claim a large product: that must end in an error and not in an abort.
fn check_size(tensor: &StoredTensor) -> Result<(), StockError> {
    let elements = tensor.shape.iter().product::<u64>() as usize;
    let mut probe = Vec::<f32>::new();
    let reserved = probe.try_reserve_exact(elements);
    // Otherwise the compiler may leave out an allocation that nobody uses.
    drop(std::hint::black_box(probe));
    reserved.map_err(|_| StockError::TooLarge {
        tensor: tensor.name.clone(),
        elements,
    })
}
