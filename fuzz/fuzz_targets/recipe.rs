//! Arbitrary text as a recipe, and its rules on tensors of many names.

#![no_main]

use dwindle_plan::Recipe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(recipe) = text.parse::<Recipe>() else {
        return;
    };
    for rule in &recipe.rules {
        for layer in [0, 1, 7] {
            let name = format!("blk.{layer}.attn_k.weight");
            rule.matches(&name, "attn_k", Some(layer), 8);
        }
        rule.matches("token_embd.weight", "token_embd", None, 8);
    }
});
