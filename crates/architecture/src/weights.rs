//! Maps source tensors to model tensors by the templates of the family.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::config::Config;
use super::families::{Dim, Family, Permute, Weight};
use super::{Assembly, Error, ModelTensor, is_always_f32};
use dwindle_checkpoint::SourceTensor;

/// The numbers that tensors' dimensions are checked against.
pub(super) struct Dims {
    pub(super) vocabulary: u64,
    pub(super) hidden: u64,
    pub(super) feed_forward: u64,
    pub(super) expert_feed_forward: u64,
    pub(super) layers: u64,
    pub(super) heads: u64,
    pub(super) kv_heads: u64,
    pub(super) head: u64,
    pub(super) experts: u64,
    pub(super) shared_feed_forward: u64,
}

impl Dims {
    pub(super) fn new(config: &Config) -> Result<Dims, Error> {
        let heads = config.need(&["num_attention_heads"])?;
        let head = match config.count(&["head_dim"])? {
            Some(dim) => dim,
            None => config.hidden_per_head()?,
        };
        let feed_forward = config.need(&["intermediate_size"])?;
        let experts = config.count(&["num_local_experts", "num_experts"])?;
        Ok(Dims {
            vocabulary: config.need(&["vocab_size"])?.into(),
            hidden: config.need(&["hidden_size"])?.into(),
            feed_forward: feed_forward.into(),
            expert_feed_forward: config
                .count(&["moe_intermediate_size"])?
                .unwrap_or(feed_forward)
                .into(),
            layers: config.need(&["num_hidden_layers"])?.into(),
            heads: heads.into(),
            kv_heads: config
                .count(&["num_key_value_heads"])?
                .filter(|n| *n > 0)
                .unwrap_or(heads)
                .into(),
            head: head.into(),
            experts: experts.unwrap_or(0).into(),
            shared_feed_forward: config
                .count(&["shared_expert_intermediate_size"])?
                .unwrap_or(0)
                .into(),
        })
    }

    fn value(&self, dim: Dim) -> u64 {
        // Each factor is below 2^32, so no product overflows.
        match dim {
            Dim::Vocabulary => self.vocabulary,
            Dim::Hidden => self.hidden,
            Dim::FeedForward => self.feed_forward,
            Dim::Query => self.heads * self.head,
            Dim::KeyValue => self.kv_heads * self.head,
            Dim::Head => self.head,
            Dim::Experts => self.experts,
            Dim::ExpertFeedForward => self.expert_feed_forward,
            Dim::SharedFeedForward => self.shared_feed_forward,
            Dim::One => 1,
        }
    }
}

/// A source tensor's name, taken apart.
struct Parsed {
    /// The name with `{}` for the layer and `{e}` for the expert, without its ending.
    template: String,
    layer: Option<u64>,
    expert: Option<u64>,
    bias: bool,
}

fn parse(name: &str) -> Option<Parsed> {
    let (stem, bias) = match name.strip_suffix(".weight") {
        Some(stem) => (stem, false),
        None => (name.strip_suffix(".bias")?, true),
    };
    let mut numbers = Vec::new();
    let mut template = String::with_capacity(stem.len());
    for part in stem.split('.') {
        if !template.is_empty() {
            template.push('.');
        }
        match part.parse::<u32>() {
            // `007` is not the name of layer 7.
            Ok(n) if n.to_string() == part => {
                template.push_str(if numbers.is_empty() { "{}" } else { "{e}" });
                numbers.push(u64::from(n));
            }
            _ => template.push_str(part),
        }
    }
    Some(Parsed {
        template,
        layer: numbers.first().copied(),
        expert: numbers.get(1).copied(),
        bias,
    })
}

fn fill(template: &str, layer: Option<u64>, ending: &str) -> String {
    let name = match layer {
        Some(layer) => template.replace("{}", &layer.to_string()),
        None => template.to_string(),
    };
    name + ending
}

/// The experts of one layer, gathered until they are complete.
#[derive(Default)]
struct Experts {
    /// By the position of the template in the family and by expert.
    found: BTreeMap<usize, BTreeMap<u64, usize>>,
    count: u64,
}

/// Finds each source tensor's place, in source order.
pub(super) fn assemble(
    family: &Family,
    dims: &Dims,
    source: &[SourceTensor],
) -> Result<Vec<ModelTensor>, Error> {
    let weights: Vec<&Weight> = family.weights.iter().copied().flatten().collect();
    let by_template: HashMap<&str, usize> = weights
        .iter()
        .enumerate()
        .map(|(i, w)| (w.source, i))
        .collect();
    let expert_weights = weights.iter().filter(|w| w.source.contains("{e}")).count() as u64;

    let mut tensors = Vec::with_capacity(source.len());
    let mut seen = HashSet::new();
    let mut experts: HashMap<u64, Experts> = HashMap::new();
    for (index, tensor) in source.iter().enumerate() {
        let (position, parsed) = place(family, (&weights, &by_template), dims, tensor)?;
        let weight = weights[position];
        seen.insert((position, parsed.layer, parsed.bias));
        let Some(expert) = parsed.expert else {
            let ending = if parsed.bias { ".bias" } else { ".weight" };
            let name = fill(weight.target, parsed.layer, ending);
            tensors.push(ModelTensor {
                always_f32: is_always_f32(&name, &tensor.shape),
                name,
                shape: tensor.shape.clone(),
                assembly: assembly(weight, index, dims, tensor)?,
            });
            continue;
        };
        let layer = parsed.layer.unwrap_or(0);
        let gathered = experts.entry(layer).or_default();
        let of_weight = gathered.found.entry(position).or_default();
        if of_weight.insert(expert, index).is_none() {
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
    require(&weights, dims, &seen)?;
    if let Some((layer, gathered)) = experts.iter().min_by_key(|(layer, _)| **layer) {
        return Err(missing_expert(&weights, dims, *layer, gathered));
    }
    Ok(tensors)
}

/// The place of a tensor in the family, and what its name says.
fn place(
    family: &Family,
    (weights, by_template): (&[&Weight], &HashMap<&str, usize>),
    dims: &Dims,
    tensor: &SourceTensor,
) -> Result<(usize, Parsed), Error> {
    let unknown = || Error::UnknownTensor {
        tensor: tensor.name.clone(),
        architecture: family.architecture.to_string(),
    };
    let parsed = parse(&tensor.name).ok_or_else(unknown)?;
    // A model without its head has names without the prefix, as embedding models do.
    let found = by_template.get(parsed.template.as_str());
    let prefixed = || by_template.get(format!("model.{}", parsed.template).as_str());
    let position = *found.or_else(prefixed).ok_or_else(unknown)?;
    let weight = weights[position];
    if parsed.layer.is_some_and(|layer| layer >= dims.layers)
        || parsed.expert.is_some_and(|expert| expert >= dims.experts)
        || parsed.bias && (weight.shape.len() < 2 && !weight.shifts || parsed.expert.is_some())
    {
        return Err(unknown());
    }
    check_shape(tensor, weight, parsed.bias, dims)?;
    Ok((position, parsed))
}

fn check_shape(
    tensor: &SourceTensor,
    weight: &Weight,
    bias: bool,
    dims: &Dims,
) -> Result<(), Error> {
    let dimensions = if bias { 1 } else { weight.shape.len() };
    let expected: Vec<u64> = weight.shape[..dimensions]
        .iter()
        .map(|dim| dims.value(*dim))
        .collect();
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

fn assembly(
    weight: &Weight,
    tensor: usize,
    dims: &Dims,
    source: &SourceTensor,
) -> Result<Assembly, Error> {
    let heads = match weight.permute {
        Permute::No => return Ok(Assembly::Copy(tensor)),
        Permute::QueryHeads => dims.heads,
        Permute::KeyValueHeads => dims.kv_heads,
    };
    if !dims.head.is_multiple_of(2) {
        return Err(Error::Config {
            file: "config.json",
            key: "head_dim".into(),
            found: format!("{} (for tensor `{}`)", dims.head, source.name),
            expected: "an even number, since rotary embeddings turn pairs".into(),
        });
    }
    Ok(Assembly::PermuteRotary { tensor, heads })
}

fn stack(
    weight: &Weight,
    layer: u64,
    indices: Vec<usize>,
    source: &[SourceTensor],
) -> Result<ModelTensor, Error> {
    let name = fill(weight.target, Some(layer), ".weight");
    let first = &source[indices[0]];
    if indices
        .iter()
        .any(|i| source[*i].shape != first.shape || source[*i].ty != first.ty)
    {
        return Err(Error::UnequalExperts { tensor: name });
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
            let layer = in_layers.then_some(layer);
            if !seen.contains(&(position, layer, false)) {
                let name = fill(weight.source, layer, ".weight");
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
        if !weight.source.contains("{e}") {
            continue;
        }
        let found = gathered.found.get(&position);
        let missing = (0..dims.experts).find(|e| !found.is_some_and(|found| found.contains_key(e)));
        if let Some(expert) = missing {
            let name = fill(weight.source, Some(layer), ".weight");
            return Error::MissingTensor {
                tensor: name.replace("{e}", &expert.to_string()),
            };
        }
    }
    Error::MissingTensor {
        tensor: format!("the experts of layer {layer}"),
    }
}
