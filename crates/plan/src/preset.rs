//! Presets: named recipes. Each is the text that a user could have written.

use super::recipe::{Recipe, RecipeError};

/// A named recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// What the user types.
    pub name: &'static str,
    /// What it is for, one line.
    pub about: &'static str,
    /// What it expands to.
    pub recipe: &'static str,
}

/// Every preset that is more than a file type. Beside these, each of llama-quantize's file types
/// is a preset of its own name.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "source",
        about: "every tensor in its source's type",
        recipe: "type = \"source\"\n",
    },
    Preset {
        name: "structured",
        about: "a smaller model for any llama.cpp: feed-forward columns leave until 0.8 of the layers' parameters are left; `--keep` says how many (needs --stats; --diagnosis for a Llama)",
        recipe: "type = \"f16\"\n\n[structure]\nkeep = 0.8\n",
    },
    Preset {
        name: "k-proj",
        about: "low-rank key projections, everything else kept; the outer layers keep more",
        recipe: r#"type = "source"

[[rule]]
roles = ["attn_k"]
method = "svd"
energy = 0.95
type = "q8_0"

[[rule]]
roles = ["attn_k"]
layers = ["..2", "-2.."]
method = "svd"
energy = 0.98
type = "q8_0"
"#,
    },
    Preset {
        name: "conservative",
        about: "0.7 of the layers' parameters in shared factors; what is fragile stays whole (needs --stats and --diagnosis)",
        recipe: r#"type = "source"

[[rule]]
roles = [
    "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps",
]
method = "svd"
joint = true
rank = "auto"
keep = 0.7
type = "q8_0"
"#,
    },
    Preset {
        name: "balanced",
        about: "the same with 0.5 of the parameters (needs --stats and --diagnosis)",
        recipe: r#"type = "source"

[[rule]]
roles = [
    "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps",
]
method = "svd"
joint = true
rank = "auto"
keep = 0.5
type = "q8_0"
"#,
    },
    Preset {
        name: "aggressive",
        about: "the same with 0.3 of the parameters (needs --stats and --diagnosis)",
        recipe: r#"type = "source"

[[rule]]
roles = [
    "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps",
]
method = "svd"
joint = true
rank = "auto"
keep = 0.3
type = "q8_0"
"#,
    },
    Preset {
        name: "hybrid-0.3",
        about: "30 % zeros by Wanda, and two factors of what they lack; experts stay whole (needs --stats)",
        recipe: r#"type = "source"

[[rule]]
roles = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
method = "sparse-low-rank"
pruning = "wanda"
sparsity = 0.3
keep = 0.8
type = "q8_0"
"#,
    },
    Preset {
        name: "hybrid-0.5",
        about: "50 % zeros by Wanda, and two factors of what they lack; experts stay whole (needs --stats)",
        recipe: r#"type = "source"

[[rule]]
roles = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
method = "sparse-low-rank"
pruning = "wanda"
sparsity = 0.5
keep = 0.6
type = "q8_0"
"#,
    },
    Preset {
        name: "tensor-network",
        about: "tensor trains over the heads of queries and values, Tucker over layers of keys, \
                the deeper half harder",
        recipe: r#"type = "source"

[[rule]]
roles = ["attn_q", "attn_v"]
method = "tensor-train"
over = "heads"
keep = 0.8
type = "q8_0"

[[rule]]
roles = ["attn_q", "attn_v"]
layers = ["50%.."]
method = "tensor-train"
over = "heads"
keep = 0.6
type = "q8_0"

[[rule]]
roles = ["attn_k"]
layers = ["..50%"]
method = "tucker"
over = "layers"
stack = 4
keep = 0.8
type = "q8_0"

[[rule]]
roles = ["attn_k"]
layers = ["50%.."]
method = "tucker"
over = "layers"
stack = 4
keep = 0.6
type = "q8_0"
"#,
    },
    Preset {
        name: "attention-low",
        about: "low-rank keys and values: ranks 128 and 64 for a width of 4096, in proportion for others",
        recipe: r#"type = "source"

[[rule]]
roles = ["attn_k"]
method = "svd"
rank = "1/32"
type = "q8_0"

[[rule]]
roles = ["attn_v"]
method = "svd"
rank = "1/64"
type = "q8_0"
"#,
    },
    Preset {
        name: "attention-med",
        about: "the same with rank 128 for values",
        recipe: r#"type = "source"

[[rule]]
roles = ["attn_k"]
method = "svd"
rank = "1/32"
type = "q8_0"

[[rule]]
roles = ["attn_v"]
method = "svd"
rank = "1/32"
type = "q8_0"
"#,
    },
    Preset {
        name: "attention-high",
        about: "the same with rank 256 for values",
        recipe: r#"type = "source"

[[rule]]
roles = ["attn_k"]
method = "svd"
rank = "1/32"
type = "q8_0"

[[rule]]
roles = ["attn_v"]
method = "svd"
rank = "1/16"
type = "q8_0"
"#,
    },
];

/// The recipe of a preset or of a file type.
///
/// # Errors
/// [`RecipeError::UnknownBase`].
pub fn preset(name: &str) -> Result<Recipe, RecipeError> {
    let name = name.to_ascii_lowercase();
    match PRESETS.iter().find(|p| p.name == name) {
        Some(preset) => preset.recipe.parse(),
        None => Ok(Recipe::of(name.parse()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_recipe() {
        for p in PRESETS {
            p.recipe.parse::<Recipe>().unwrap();
        }
        assert_eq!(preset("k-proj").unwrap().rules.len(), 2);
        assert!(matches!(
            preset("k-projj"),
            Err(RecipeError::UnknownBase(_))
        ));
        assert_eq!(preset("Q4_K_M").unwrap().base, "q4_k_m".parse().unwrap());
    }
}
