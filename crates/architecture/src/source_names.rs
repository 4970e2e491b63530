//! The names of a checkpoint's tensors, by the templates of a family.

use std::collections::HashMap;

use super::families::{Family, Weight};

/// What names may begin with that a template leaves out, or lacks: a model without its head has names
/// without `model.`, and the language model of one that sees has them behind `language_model.`.
const PREFIXES: [(&str, &str); 9] = [
    ("", ""),
    ("bert.", ""),
    ("roberta.", ""),
    ("distilbert.", ""),
    ("", "model."),
    ("", "transformer."),
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.", ""),
];

/// A source tensor's name, taken apart.
pub(super) struct Parsed {
    /// The name with `{}` for the layer and `{e}` for the expert, without its ending.
    pub(super) template: String,
    pub(super) layer: Option<u64>,
    pub(super) expert: Option<u64>,
    pub(super) bias: bool,
    /// Whether it has no ending.
    whole: bool,
}

pub(super) fn parse(name: &str) -> Parsed {
    // Older BERTs call the weight and the bias of a norm so.
    let of = |ending: &str, older: &str| {
        let stem = name.strip_suffix(ending);
        stem.or_else(|| name.strip_suffix(older))
    };
    let (stem, biased) = (of(".weight", ".gamma"), of(".bias", ".beta"));
    let bias = biased.is_some();
    let whole = stem.or(biased).is_none();
    let stem = stem.or(biased).unwrap_or(name);
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
    Parsed {
        template,
        layer: numbers.first().copied(),
        expert: numbers.get(1).copied(),
        bias,
        whole,
    }
}

/// The name of a template in a layer.
pub(super) fn fill(template: &str, layer: Option<u64>) -> String {
    match layer {
        Some(layer) => template.replace("{}", &layer.to_string()),
        None => template.to_string(),
    }
}

/// What stands behind a weight's names.
pub(super) fn ending(weight: &Weight, bias: bool) -> &'static str {
    match (weight.named, bias) {
        (true, _) => "",
        (false, true) => ".bias",
        (false, false) => ".weight",
    }
}

/// Whether it is one of a weight of experts.
pub(super) fn is_expert(weight: &Weight) -> bool {
    weight.source.contains("{e}")
}

/// Whether llama.cpp has no place for a tensor, such as a mask that older checkpoints hold.
pub(super) fn is_dropped(family: &Family, name: &str) -> bool {
    family.dropped.iter().any(|pattern| {
        let from_start = pattern.strip_prefix('*').map(|rest| (false, rest));
        let (whole, rest) = from_start.unwrap_or((true, pattern));
        match (whole, rest.strip_suffix('*')) {
            (true, None) => name == rest,
            (true, Some(start)) => name.starts_with(start),
            (false, None) => name.ends_with(rest),
            (false, Some(part)) => name.contains(part),
        }
    })
}

/// The weights of a family by their templates.
pub(super) struct Index<'a> {
    pub(super) weights: Vec<&'a Weight>,
    places: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Index<'a> {
    pub(super) fn of(family: &'a Family) -> Index<'a> {
        let weights: Vec<&Weight> = family.weights.iter().copied().flatten().collect();
        let mut places: HashMap<&str, Vec<usize>> = HashMap::new();
        for (place, weight) in weights.iter().enumerate() {
            places.entry(weight.source).or_default().push(place);
        }
        Index { weights, places }
    }

    /// Where a tensor of the checkpoint belongs, and what its name says.
    pub(super) fn find(&self, name: &str) -> Option<(&[usize], Parsed)> {
        let parsed = parse(name);
        let found = PREFIXES.iter().find_map(|(there, here)| {
            let rest = parsed.template.strip_prefix(there)?;
            self.places.get(format!("{here}{rest}").as_str())
        });
        // A name that is whole says so in the template, and the other way round.
        let found = found?;
        let is_whole = self.weights[found[0]].named;
        (is_whole == parsed.whole).then_some((found, parsed))
    }
}
