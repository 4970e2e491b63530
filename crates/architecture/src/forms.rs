//! How weights come out of tensors of the checkpoint that hold them in another form.

use super::config::bad;
use super::dims::Dims;
use super::families::{Form, Heads};
use super::{Assembly, Error, ModelTensor, is_always_f32};
use dwindle_checkpoint::SourceTensor;

/// The shape that the checkpoint has of a weight of this shape, both slowest dimension first.
pub(super) fn source_shape(form: Form, mut shape: Vec<u64>, dims: &Dims) -> Vec<u64> {
    match form {
        Form::Linear(form) => {
            if let Some(linear) = &dims.linear {
                linear.source_shape(form, &mut shape);
            }
        }
        Form::Latent(_) => {
            if let Some(latent) = &dims.latent {
                shape = latent.source_shape();
            }
        }
        Form::State(_) => {
            let elements = shape.iter().product();
            shape = vec![elements];
        }
        // A bias has no dimension between.
        Form::Convolution if shape.len() > 1 => shape.insert(1, 1),
        Form::Transposed | Form::TransposedAlternate(_) => {
            let rows = shape.len().saturating_sub(2);
            if matches!(form, Form::TransposedAlternate(_)) {
                shape[rows] *= 2;
            }
            shape[rows..].reverse();
        }
        Form::Half(_) | Form::Alternate(_) => {
            let rows = shape.len().saturating_sub(2);
            shape[rows] *= 2;
        }
        Form::AlternateElements(_) => {
            let elements = shape.len().saturating_sub(1);
            shape[elements] *= 2;
        }
        _ => {}
    }
    shape
}

/// A weight out of a tensor of the checkpoint.
pub(super) fn formed(
    form: Form,
    name: String,
    tensor: usize,
    dims: &Dims,
    source: &SourceTensor,
) -> Result<ModelTensor, Error> {
    let mut shape = source.shape.clone();
    let assembly = match form {
        Form::Linear(_) | Form::Latent(_) | Form::State(_) => {
            of_other_kind(form, tensor, dims, source, &mut shape)
        }
        Form::Whole | Form::Third(_) => Assembly::Copy(tensor),
        Form::Pairs(heads) => {
            if !dims.head.is_multiple_of(2) {
                let found = format!("{} (for tensor `{}`)", dims.head, source.name);
                let expected = "an even number, since rotary embeddings turn pairs";
                return Err(bad("head_dim", &found.into(), expected));
            }
            let heads = match heads {
                Heads::Query => dims.heads,
                Heads::KeyValue => dims.kv_heads,
            };
            Assembly::PermuteRotary { tensor, heads }
        }
        Form::Transposed if shape.len() == 1 => Assembly::Copy(tensor),
        Form::Transposed => transposed(tensor, source, &mut shape),
        Form::Alternate(first) | Form::TransposedAlternate(first) => {
            let assembly = match form {
                Form::Alternate(_) => Assembly::Copy(tensor),
                _ => transposed(tensor, source, &mut shape),
            };
            let of = Box::new(inner(source, shape.clone(), assembly));
            shape[1] /= 2;
            Assembly::Alternate { of, first }
        }
        Form::AlternateElements(first) => {
            let elements = shape.iter().product();
            let of = Box::new(inner(source, vec![1, elements], Assembly::Copy(tensor)));
            shape[0] /= 2;
            Assembly::Alternate { of, first }
        }
        // What shifts is as it is.
        Form::PlusOne if name.ends_with(".bias") => Assembly::Copy(tensor),
        Form::PlusOne => Assembly::PlusOne(tensor),
        Form::BehindPadding => behind_padding(tensor, dims, source, &mut shape)?,
        Form::Convolution => {
            if shape.len() > 2 {
                shape.remove(1);
            }
            Assembly::Copy(tensor)
        }
        Form::Half(half) => of_half(half, tensor, source, &mut shape),
        Form::Grouped if !dims.heads.is_multiple_of(dims.kv_heads) => {
            let expected = format!("a divisor of {} heads", dims.heads);
            return Err(bad("num_key_value_heads", &dims.kv_heads.into(), &expected));
        }
        Form::Grouped => selected(tensor, source, ungrouped(dims)),
    };
    Ok(ModelTensor {
        always_f32: is_always_f32(&name, &shape),
        name,
        shape,
        assembly,
    })
}

/// A weight of another kind of layer than attention to everything.
fn of_other_kind(
    form: Form,
    tensor: usize,
    dims: &Dims,
    source: &SourceTensor,
    shape: &mut Vec<u64>,
) -> Assembly {
    match (form, &dims.linear, &dims.latent, &dims.state_space) {
        (Form::Linear(form), Some(linear), _, _) => linear.formed(form, tensor, source, shape),
        (Form::Latent(form), _, Some(latent), _) => latent.formed(form, tensor, source, shape),
        (Form::State(form), _, _, Some(space)) => space.formed(form, tensor, shape),
        _ => Assembly::Copy(tensor),
    }
}

/// The columns of each matrix as its rows.
fn transposed(tensor: usize, source: &SourceTensor, shape: &mut [u64]) -> Assembly {
    let of = inner(source, shape.to_vec(), Assembly::Copy(tensor));
    shape[..2].reverse();
    Assembly::Transpose(Box::new(of))
}

/// Positions without those that lead.
fn behind_padding(
    tensor: usize,
    dims: &Dims,
    source: &SourceTensor,
    shape: &mut [u64],
) -> Result<Assembly, Error> {
    let rows = shape.get(1).copied().unwrap_or(0);
    if dims.padding >= rows {
        let found = (dims.padding - 1).into();
        let expected = format!("one before the last of {rows} rows of `{}`", source.name);
        return Err(bad("pad_token_id", &found, &expected));
    }
    shape[1] = rows - dims.padding;
    Ok(selected(tensor, source, (dims.padding..rows).collect()))
}

/// The first or the second half of the rows of each matrix.
fn of_half(half: u64, tensor: usize, source: &SourceTensor, shape: &mut [u64]) -> Assembly {
    let rows = shape.len().min(2) - 1;
    let (all, slices) = (shape[rows], shape.get(2).copied().unwrap_or(1));
    shape[rows] = all / 2;
    let first = |slice: u64| slice * all + half * (all / 2);
    let rows = (0..slices).flat_map(|s| first(s)..first(s) + all / 2);
    selected(tensor, source, rows.collect())
}

/// Some rows of a tensor of the checkpoint.
fn selected(tensor: usize, source: &SourceTensor, rows: Vec<u64>) -> Assembly {
    let of = Box::new(inner(source, source.shape.clone(), Assembly::Copy(tensor)));
    Assembly::Select { of, rows }
}

/// A tensor of the checkpoint, some of whose rows make a weight.
fn inner(source: &SourceTensor, shape: Vec<u64>, assembly: Assembly) -> ModelTensor {
    ModelTensor {
        name: source.name.clone(),
        shape,
        assembly,
        always_f32: false,
    }
}

/// Where the rows of all of Q, all of K and all of V lie, if each key head has its query heads before it and its
/// values behind it.
fn ungrouped(dims: &Dims) -> Vec<u64> {
    let shared = dims.heads / dims.kv_heads.max(1);
    let group = (shared + 2) * dims.head;
    let of = |first: u64, heads: u64| {
        let start = move |g: u64| g * group + first * dims.head;
        (0..dims.kv_heads).flat_map(move |g| start(g)..start(g) + heads * dims.head)
    };
    of(0, shared)
        .chain(of(shared, 1))
        .chain(of(shared + 1, 1))
        .collect()
}

/// Q, K and V as one weight, and its bias, which is zero.
pub(super) fn fused(
    target: &str,
    parts: [usize; 3],
    dims: &Dims,
    source: &[SourceTensor],
) -> Result<[ModelTensor; 2], Error> {
    let first = &source[parts[0]];
    let differs = |i: usize| source[i].ty != first.ty || source[i].shape != first.shape;
    if parts.into_iter().any(differs) {
        let tensor = format!("{target}.weight");
        return Err(Error::UnequalParts { tensor });
    }
    let rows = 3 * first.shape[1];
    let weight = ModelTensor {
        name: format!("{target}.weight"),
        shape: vec![first.shape[0], rows],
        assembly: Assembly::Fused {
            parts,
            scale: (dims.head as f32).sqrt(),
        },
        always_f32: false,
    };
    let bias = ModelTensor {
        name: format!("{target}.bias"),
        shape: vec![rows],
        assembly: Assembly::of_floats(&vec![0.0; rows as usize]),
        always_f32: true,
    };
    Ok([weight, bias])
}
