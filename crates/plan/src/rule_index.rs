//! Which rule a tensor falls under, found without asking every rule: a recipe that a budget made
//! has one for each tensor.

use std::collections::HashMap;

use super::recipe::Rule;
use dwindle_architecture::{ModelTensor, role};

/// The rules of a recipe, those of single tensors by name.
pub(super) struct RuleIndex<'a> {
    rules: &'a [Rule],
    layers: u32,
    /// The last rule that speaks of this tensor alone.
    by_name: HashMap<&'a str, usize>,
    /// Rules that may speak of several.
    patterns: Vec<usize>,
}

impl<'a> RuleIndex<'a> {
    /// For a model of so many layers.
    pub fn new(rules: &'a [Rule], layers: u32) -> RuleIndex<'a> {
        let mut index = RuleIndex {
            rules,
            layers,
            by_name: HashMap::new(),
            patterns: Vec::new(),
        };
        for (number, rule) in rules.iter().enumerate() {
            match rule.only_tensor() {
                Some(name) => drop(index.by_name.insert(name, number)),
                None => index.patterns.push(number),
            }
        }
        index
    }

    /// The rule of each weight, and the weights of each rule.
    pub fn assign(&self, tensors: &[ModelTensor]) -> (Vec<Option<usize>>, Vec<Vec<usize>>) {
        let rule_of = |tensor: &ModelTensor| self.last(tensor).filter(|_| tensor.is_weight());
        let rules: Vec<Option<usize>> = tensors.iter().map(rule_of).collect();
        let mut members = vec![Vec::new(); self.rules.len()];
        for (index, rule) in rules.iter().enumerate() {
            if let Some(rule) = rule {
                members[*rule].push(index);
            }
        }
        (rules, members)
    }

    /// The last rule that speaks of a tensor.
    fn last(&self, tensor: &ModelTensor) -> Option<usize> {
        let (layer, role) = role(&tensor.name);
        let matches =
            |number: &&usize| self.rules[**number].matches(&tensor.name, role, layer, self.layers);
        let by_pattern = self.patterns.iter().rev().find(matches);
        let by_name = self.by_name.get(tensor.name.as_str());
        by_pattern.max(by_name).copied()
    }
}

#[cfg(test)]
mod tests {
    use dwindle_formats::gguf::TensorType;
    use proptest::prelude::*;

    use super::*;
    use dwindle_architecture::Assembly;

    const NAMES: [&str; 5] = [
        "blk.0.attn_q.weight",
        "blk.1.attn_q.weight",
        "blk.1.ffn_up.weight",
        "output.weight",
        "blk.9.attn_q.weight",
    ];

    fn rule() -> impl Strategy<Value = Rule> {
        let name = prop::option::of(prop::sample::select(vec![
            NAMES[0],
            NAMES[1],
            NAMES[3],
            "blk.*.weight",
            "*",
            "other",
        ]));
        let role = prop::option::of(prop::sample::select(vec!["attn_q", "ffn_up"]));
        (name, role).prop_map(|(name, role)| Rule {
            roles: role.into_iter().map(str::to_string).collect(),
            name: name.map(str::to_string),
            ..Rule::of_tensor("", TensorType::F16)
        })
    }

    proptest! {
        #[test]
        fn the_index_finds_what_asking_every_rule_finds(
            rules in prop::collection::vec(rule(), 0..12)
        ) {
            let index = RuleIndex::new(&rules, 10);
            for name in NAMES {
                let tensor = ModelTensor {
                    name: name.into(),
                    shape: vec![1],
                    assembly: Assembly::Copy(0),
                    always_f32: false,
                };
                let (layer, role) = role(name);
                let asked = rules.iter().rposition(|r| r.matches(name, role, layer, 10));
                prop_assert_eq!(index.last(&tensor), asked);
            }
        }
    }
}
