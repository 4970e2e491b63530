//! Maps source tensors to model tensors by the templates of the family.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::dims::Dims;
use super::families::{Family, Form, Layers, Weight};
use super::forms::{formed, fused, source_shape};
use super::kinds::Kind;
use super::source_names::{Index, Parsed, ending, fill, is_dropped, is_expert, parse};
use super::{Assembly, Error, ModelTensor, is_always_f32};
use dwindle_checkpoint::SourceTensor;
use dwindle_formats::gguf::TensorType;

impl Layers {
    fn has(self, layer: u64, dims: &Dims) -> bool {
        match self {
            Layers::All => true,
            Layers::Leading => layer < dims.leading,
            Layers::Behind => layer >= dims.leading,
            Layers::WithExperts => dims.experts > 0,
            Layers::WithoutExperts => dims.experts == 0,
            Layers::Keyless => dims.kind(layer) == Kind::Keyless,
            Layers::Keyed => dims.kind(layer) == Kind::Attending,
            Layers::Feeding => matches!(dims.kind(layer), Kind::Feeding | Kind::Routed),
            Layers::Linear => dims.linear.as_ref().is_some_and(|linear| linear.has(layer)),
            Layers::Attending => dims.linear.as_ref().is_none_or(|linear| !linear.has(layer)),
        }
    }
}

/// The experts of one layer, gathered until they are complete.
#[derive(Default)]
struct Experts {
    /// By the position of the template in the family and by expert.
    found: BTreeMap<usize, BTreeMap<u64, usize>>,
    count: u64,
}

/// Q, K and V of each layer, gathered until they are complete.
#[derive(Default)]
struct Thirds(HashMap<String, [Option<usize>; 3]>);

impl Thirds {
    /// All three, once they are there.
    fn add(&mut self, target: &str, part: usize, number: usize) -> Option<[usize; 3]> {
        let found = self.0.entry(target.to_string()).or_default();
        found[part] = Some(number);
        let [Some(q), Some(k), Some(v)] = *found else {
            return None;
        };
        Some([q, k, v])
    }
}

/// Finds each source tensor's place, in source order. Also gives the names of those that have none.
pub(super) fn assemble(
    family: &Family,
    dims: &Dims,
    source: &[SourceTensor],
) -> Result<(Vec<ModelTensor>, Vec<String>), Error> {
    let index = Index::of(family);
    let weights = &index.weights;
    let expert_weights = weights.iter().filter(|w| is_expert(w)).count() as u64;

    let mut tensors = Vec::with_capacity(source.len());
    let mut left_out = Vec::new();
    let mut seen = HashSet::new();
    let mut experts: HashMap<u64, Experts> = HashMap::new();
    let mut thirds = Thirds::default();
    for (number, tensor) in source.iter().enumerate() {
        if is_dropped(family, &tensor.name) || is_ahead(&tensor.name, dims) {
            left_out.push(tensor.name.clone());
            continue;
        }
        let (places, parsed) = place(family, &index, dims, tensor)?;
        let key = |place: &usize| (*place, parsed.layer, parsed.bias);
        let new = places
            .iter()
            .filter(|place| seen.insert(key(place)))
            .count();
        let Some(expert) = parsed.expert else {
            if new < places.len() {
                let tensor = tensor.name.clone();
                return Err(Error::Twice { tensor });
            }
            for place in places {
                let weight = weights[place];
                if let Form::Third(part) = weight.form {
                    let target = fill(weight.target, parsed.layer);
                    if let Some(parts) = thirds.add(&target, part, number) {
                        tensors.extend(fused(&target, parts, dims, source)?);
                    }
                    continue;
                }
                let name = fill(weight.target, parsed.layer) + ending(weight, parsed.bias);
                tensors.push(formed(weight.form, name, number, dims, tensor)?);
            }
            continue;
        };
        let position = places[0];
        let layer = parsed.layer.unwrap_or(0);
        let gathered = experts.entry(layer).or_default();
        let of_weight = gathered.found.entry(position).or_default();
        if of_weight.insert(expert, number).is_none() {
            gathered.count += 1;
        }
        if gathered.count == dims.experts * expert_weights {
            for (position, indices) in &gathered.found {
                let indices: Vec<usize> = indices.values().copied().collect();
                tensors.push(stack(weights[*position], layer, indices, source)?);
            }
            experts.remove(&layer);
        }
    }
    refuse_twice(&tensors)?;
    require(weights, dims, &seen)?;
    if let Some((layer, gathered)) = experts.iter().min_by_key(|(layer, _)| **layer) {
        return Err(missing_expert(weights, dims, *layer, gathered));
    }
    Ok((tensors, left_out))
}

/// Refuses a checkpoint that has a weight in two forms.
fn refuse_twice(tensors: &[ModelTensor]) -> Result<(), Error> {
    let mut names = HashSet::new();
    match tensors.iter().find(|t| !names.insert(t.name.as_str())) {
        None => Ok(()),
        Some(twice) => Err(Error::Twice {
            tensor: twice.name.clone(),
        }),
    }
}

/// The places of a tensor in the family, and what its name says.
fn place(
    family: &Family,
    index: &Index<'_>,
    dims: &Dims,
    tensor: &SourceTensor,
) -> Result<(Vec<usize>, Parsed), Error> {
    let unknown = || Error::UnknownTensor {
        tensor: tensor.name.clone(),
        architecture: family.architecture.to_string(),
    };
    let (places, parsed) = index.find(&tensor.name).ok_or_else(unknown)?;
    let in_model = parsed.layer.is_none_or(|layer| layer < dims.layers)
        && parsed.expert.is_none_or(|expert| expert < dims.experts);
    let has = |place: &usize| {
        let layers = index.weights[*place].layers;
        parsed.layer.is_none_or(|layer| layers.has(layer, dims))
    };
    let places: Vec<usize> = places.iter().copied().filter(has).collect();
    if places.is_empty() || !in_model {
        return Err(unknown());
    }
    for place in &places {
        let weight = index.weights[*place];
        let has_none = match weight.form {
            Form::Linear(_) | Form::Latent(_) | Form::State(_) => true,
            _ => weight.shape.len() < 2 && !weight.shifts || parsed.expert.is_some(),
        };
        if parsed.bias && has_none {
            return Err(unknown());
        }
        check_shape(tensor, weight, parsed.bias, dims)?;
        check_type(family, tensor, weight)?;
    }
    Ok((places, parsed))
}

/// What is computed of elements needs numbers.
fn check_type(family: &Family, tensor: &SourceTensor, weight: &Weight) -> Result<(), Error> {
    let computes = !matches!(
        weight.form,
        Form::Whole
            | Form::Pairs(_)
            | Form::Half(_)
            | Form::Alternate(_)
            | Form::Grouped
            | Form::BehindPadding
    );
    let floats = [TensorType::F32, TensorType::F16, TensorType::BF16];
    if computes && !floats.contains(&tensor.ty) {
        return Err(Error::Feature {
            architecture: family.architecture.to_string(),
            found: format!("type {} of `{}`", tensor.ty, tensor.name),
            supported: "f32, f16 or bf16".into(),
        });
    }
    Ok(())
}

/// Whether a tensor is of a layer that predicts further ahead than the next token.
fn is_ahead(name: &str, dims: &Dims) -> bool {
    let ahead = dims.layers..dims.layers + dims.ahead;
    parse(name)
        .layer
        .is_some_and(|layer| ahead.contains(&layer))
}

fn check_shape(
    tensor: &SourceTensor,
    weight: &Weight,
    bias: bool,
    dims: &Dims,
) -> Result<(), Error> {
    let dimensions = if bias { 1 } else { weight.shape.len() };
    let wanted = weight.shape[..dimensions].iter();
    let wanted = wanted.map(|dim| dims.value(*dim)).collect();
    let expected = source_shape(weight.form, wanted, dims);
    let found: Vec<u64> = tensor.shape.iter().rev().copied().collect();
    if found == expected {
        Ok(())
    } else {
        Err(Error::Shape {
            tensor: tensor.name.clone(),
            found,
            expected,
        })
    }
}

fn stack(
    weight: &Weight,
    layer: u64,
    indices: Vec<usize>,
    source: &[SourceTensor],
) -> Result<ModelTensor, Error> {
    let name = fill(weight.target, Some(layer)) + ".weight";
    let first = &source[indices[0]];
    if indices
        .iter()
        .any(|i| source[*i].shape != first.shape || source[*i].ty != first.ty)
    {
        return Err(Error::UnequalParts { tensor: name });
    }
    let mut shape = first.shape.clone();
    shape.push(indices.len() as u64);
    Ok(ModelTensor {
        always_f32: is_always_f32(&name, &shape),
        name,
        shape,
        assembly: Assembly::Stack(indices),
    })
}

/// Whether every weight is there that a model can't be without.
fn require(
    weights: &[&Weight],
    dims: &Dims,
    seen: &HashSet<(usize, Option<u64>, bool)>,
) -> Result<(), Error> {
    for (position, weight) in weights.iter().enumerate().filter(|(_, w)| !w.optional) {
        let in_layers = weight.source.contains("{}");
        // Ends at the first missing one, however many layers the configuration claims.
        for layer in 0..if in_layers { dims.layers } else { 1 } {
            if !weight.layers.has(layer, dims) {
                continue;
            }
            let layer = in_layers.then_some(layer);
            // Some weights have several forms, of which a checkpoint has one.
            let whole = |w: &Weight| w.target.to_string() + ending(w, false);
            let is_there = |(other, w): (usize, &&Weight)| {
                seen.contains(&(other, layer, false)) && whole(w) == whole(weight)
            };
            if !seen.contains(&(position, layer, false))
                && !weights.iter().enumerate().any(is_there)
            {
                let name = fill(weight.source, layer) + ending(weight, false);
                return Err(Error::MissingTensor {
                    tensor: name.replace("{e}", "0"),
                });
            }
        }
    }
    Ok(())
}

fn missing_expert(weights: &[&Weight], dims: &Dims, layer: u64, gathered: &Experts) -> Error {
    for (position, weight) in weights.iter().enumerate() {
        if !is_expert(weight) {
            continue;
        }
        let found = gathered.found.get(&position);
        let missing = (0..dims.experts).find(|e| !found.is_some_and(|found| found.contains_key(e)));
        if let Some(expert) = missing {
            let name = fill(weight.source, Some(layer)) + ".weight";
            return Error::MissingTensor {
                tensor: name.replace("{e}", &expert.to_string()),
            };
        }
    }
    Error::MissingTensor {
        tensor: format!("the experts of layer {layer}"),
    }
}
