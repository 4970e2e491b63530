//! Presets: named recipes. Each is the text that a user could have written.

use super::recipe::{Base, Recipe};

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
];

/// The recipe of a preset or of a file type.
pub fn preset(name: &str) -> Recipe {
    let name = name.to_ascii_lowercase();
    PRESETS
        .iter()
        .find(|p| p.name == name)
        // A test holds every preset's text against the parser.
        .and_then(|p| p.recipe.parse().ok())
        .unwrap_or_else(|| Recipe {
            base: Base::FileType(name),
            rules: Vec::new(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_recipe() {
        for p in PRESETS {
            p.recipe.parse::<Recipe>().unwrap();
        }
        assert_eq!(preset("k-proj").rules.len(), 2);
        assert_eq!(preset("Q4_K_M").base, Base::FileType("q4_k_m".into()));
    }
}
