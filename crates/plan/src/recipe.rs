//! Recipes: the user's wishes as TOML, rules from roles, layers and names to methods.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use dwindle_formats::gguf::TensorType;
use dwindle_ggml::{FILE_TYPES, FileType};
use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer, ValueDeserializer};

use super::layers::LayerRange;
use super::methods::{Method, Quantize};
use super::preset::PRESETS;
use super::rule;
use crate::structure::Structure;

/// Why a recipe can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
    /// A structure that is reduced, and rules that need what was measured of the whole.
    #[error(
        "rule {number} of the recipe: `[structure]` goes with `quantize` alone; write a `.gguf` with it, \
         and compress that again"
    )]
    Structure {
        /// Counted from one.
        number: usize,
    },
    /// A `type` that is no file type, or a preset that is none.
    #[error(transparent)]
    UnknownBase(#[from] UnknownBase),
    /// Not TOML, or not a recipe.
    #[error("the recipe can't be read: {0}")]
    Toml(#[from] toml::de::Error),
    /// A rule that contradicts itself.
    #[error("rule {number} of the recipe: {problem}")]
    Rule {
        /// Counted from one.
        number: usize,
        /// What is wrong and what is expected.
        problem: String,
    },
}

/// What becomes of each tensor: a base type for the whole model, and rules for exceptions.
///
/// Where several rules match a tensor, the last one counts.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What holds where no rule does.
    pub base: Base,
    /// The exceptions, in the order in which they were written.
    pub rules: Vec<Rule>,
    /// How weights become codes of quantized types.
    pub rounding: Rounding,
    /// What is to become of the model's structure beforehand.
    pub structure: Option<Structure>,
}

/// How weights become codes of a quantized type.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rounding {
    /// As ggml rounds them: each weight to the nearest code, scales by importance.
    #[default]
    Nearest,
    /// So that the layer's output is nearest, by the Gram matrix of its input
    /// ([`rounding`](dwindle_method::rounding)).
    Output,
}

/// The type of everything that no rule names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Each tensor in its source's type.
    Source,
    /// One of llama-quantize's file types (`f16`, `q8_0`, `q4_k_m`), with its mixture of types.
    FileType(FileType),
}

impl Base {
    /// Every weight in F16.
    pub const F16: Base = Base::FileType(FileType::F16);
    /// Every weight in BF16.
    pub const BF16: Base = Base::FileType(FileType::BF16);
}

/// Neither a preset nor a file type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no preset and no file type; {rest}", rest = instead(.0))]
pub struct UnknownBase(pub String);

/// How alike, from 0 to 1, a name must be to one that exists to be taken for it.
const ALIKE: f64 = 0.8;

/// What was meant, or all that there is.
fn instead(name: &str) -> String {
    let presets = || PRESETS.iter().map(|p| p.name);
    let types = || FILE_TYPES.iter().map(|t| t.name);
    let letters = |name: &str| name.replace(['-', '_'], "");
    let likeness =
        |known: &&str| strsim::normalized_damerau_levenshtein(&letters(name), &letters(known));
    let best = presets()
        .chain(types())
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match best.filter(|known| likeness(known) >= ALIKE) {
        Some(known) => format!("did you mean `{known}`?"),
        None => format!(
            "presets are {}, file types are {}",
            names(presets()),
            names(types())
        ),
    }
}

fn names(names: impl Iterator<Item = &'static str>) -> String {
    let quoted: Vec<String> = names.map(|n| format!("`{n}`")).collect();
    quoted.join(", ")
}

impl FromStr for Base {
    type Err = UnknownBase;

    fn from_str(name: &str) -> Result<Base, UnknownBase> {
        match name {
            "source" => Ok(Base::Source),
            name => FileType::from_name(name)
                .map(Base::FileType)
                .ok_or_else(|| UnknownBase(name.to_ascii_lowercase())),
        }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Base::Source => f.write_str("source"),
            Base::FileType(file_type) => f.write_str(file_type.name),
        }
    }
}

/// Which tensors, and what becomes of them.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Roles (`attn_k`, `ffn_down`); empty for all.
    pub roles: Vec<String>,
    /// Layers; empty for all, tensors outside the layers included.
    pub layers: Vec<LayerRange>,
    /// A name pattern in which `*` stands for any characters.
    pub name: Option<String>,
    /// What becomes of the tensors.
    pub(crate) method: Arc<dyn Method>,
}

impl Rule {
    /// One tensor in another type.
    pub fn of_tensor(name: &str, ty: TensorType) -> Rule {
        Rule {
            roles: Vec::new(),
            layers: Vec::new(),
            name: Some(name.to_string()),
            method: Arc::new(Quantize(Some(ty))),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecipe {
    #[serde(rename = "type")]
    base: String,
    /// Read by themselves: what a rule may say depends on its method.
    #[serde(rename = "rule")]
    _rules: Option<IgnoredAny>,
    #[serde(default)]
    rounding: Rounding,
    structure: Option<Structure>,
}

impl Recipe {
    /// The recipe for a model whose structure is reduced beforehand.
    ///
    /// # Errors
    /// [`RecipeError::Structure`].
    pub fn with_structure(mut self, wish: Structure) -> Result<Recipe, RecipeError> {
        self.structure = Some(wish);
        self.checked()
    }

    /// Holds rules against a change of the structure.
    fn checked(self) -> Result<Recipe, RecipeError> {
        let clashes = |r: &Rule| self.structure.is_some() && !r.method.follows_structure();
        match self.rules.iter().position(clashes) {
            Some(at) => Err(RecipeError::Structure { number: at + 1 }),
            None => Ok(self),
        }
    }

    /// A recipe without rules.
    pub fn of(base: Base) -> Recipe {
        Recipe {
            base,
            rules: Vec::new(),
            rounding: Rounding::default(),
            structure: None,
        }
    }
}

impl FromStr for Recipe {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Recipe, RecipeError> {
        let in_text = |mut error: toml::de::Error| {
            error.set_input(Some(text));
            RecipeError::Toml(error)
        };
        let mut table = DeTable::parse(text)?;
        let rules = table.get_mut().remove("rule");
        let raw = RawRecipe::deserialize(Deserializer::from(table)).map_err(in_text)?;
        let rules = match rules.map(|value| (value.span(), value.into_inner())) {
            None => Vec::new(),
            Some((_, DeValue::Array(rules))) => rules.into_iter().collect(),
            Some((span, other)) => {
                let other = ValueDeserializer::from(Spanned::new(span, other));
                Vec::<IgnoredAny>::deserialize(other).map_err(in_text)?;
                Vec::new()
            }
        };
        let rule = |(i, value)| {
            let checked = rule::read(value).map_err(in_text)?;
            checked.map_err(|problem| RecipeError::Rule {
                number: i + 1,
                problem,
            })
        };
        let rules = rules.into_iter().enumerate().map(rule);
        Recipe {
            base: raw.base.parse::<Base>()?,
            rules: rules.collect::<Result<Vec<Rule>, _>>()?,
            rounding: raw.rounding,
            structure: raw.structure,
        }
        .checked()
    }
}

impl Rule {
    /// The one tensor that the rule can speak of, where it names one and says nothing else.
    pub fn only_tensor(&self) -> Option<&str> {
        let name = self.name.as_deref()?;
        let exact = !name.contains('*') && self.roles.is_empty() && self.layers.is_empty();
        exact.then_some(name)
    }

    /// What the rule looks for, in words.
    pub(crate) fn sought(&self) -> String {
        let list = |what: &str, all: Vec<String>| {
            (!all.is_empty()).then(|| format!("{what} {}", all.join(", ")))
        };
        let quoted = |text: &dyn fmt::Display| format!("`{text}`");
        let sought = [
            list("roles", self.roles.iter().map(|r| quoted(r)).collect()),
            list("layers", self.layers.iter().map(|l| quoted(l)).collect()),
            list("name", self.name.iter().map(|n| quoted(n)).collect()),
        ];
        let sought: Vec<String> = sought.into_iter().flatten().collect();
        if sought.is_empty() {
            return "any name".to_string();
        }
        sought.join(" and ")
    }

    /// Whether the rule speaks of a tensor.
    pub fn matches(&self, name: &str, role: &str, layer: Option<u32>, layer_count: u32) -> bool {
        let in_layers = || {
            layer.is_some_and(|l| {
                self.layers
                    .iter()
                    .any(|range| range.contains(l, layer_count))
            })
        };
        (self.roles.is_empty() || self.roles.iter().any(|r| r == role))
            && (self.layers.is_empty() || in_layers())
            && self.name.as_deref().is_none_or(|p| glob(p, name))
    }
}

/// Whether a pattern, in which `*` stands for any characters, covers a whole text.
fn glob(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for piece in pieces {
        if let Some(middle) = last.replace(piece) {
            match rest.find(middle) {
                Some(at) => rest = &rest[at + middle.len()..],
                None => return false,
            }
        }
    }
    match last {
        None => rest.is_empty(),
        Some(end) => rest.ends_with(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_cover_whole_names() {
        assert!(glob("blk.*.attn_k.weight", "blk.11.attn_k.weight"));
        assert!(glob("*", ""));
        assert!(glob("a*b*c", "axxbxbc"));
        assert!(!glob("a*b", "axbx"));
        assert!(!glob("blk.1", "blk.11"));
        assert!(!glob("ab*b", "ab"));
    }

    #[test]
    fn what_a_rule_looks_for_is_said_in_words() {
        let sought = |keys: &str| {
            let text = format!("type = \"f16\"\n[[rule]]\ntype = \"q8_0\"\n{keys}");
            text.parse::<Recipe>().unwrap().rules[0].sought()
        };
        assert_eq!(
            sought("roles = [\"attn_k\", \"x\"]\nlayers = [\"2..-2\", \"50%..\"]"),
            "roles `attn_k`, `x` and layers `2..-2`, `50%..`"
        );
        assert_eq!(sought("name = \"blk.*\""), "name `blk.*`");
        assert_eq!(sought(""), "any name");
    }

    #[test]
    fn a_recipe_is_read_and_its_mistakes_are_named() {
        let recipe: Recipe = r#"
            type = "q8_0"
            [[rule]]
            roles = ["attn_k"]
            layers = ["2..-2"]
            method = "svd"
            energy = 0.9
            type = "f16"
        "#
        .parse()
        .unwrap();
        assert_eq!(recipe.base, "q8_0".parse().unwrap());
        assert_eq!(
            format!("{:?}", recipe.rules[0].method),
            "Svd { rank: Energy(0.9), ty: F16 }"
        );
        assert!(recipe.rules[0].matches("blk.2.attn_k.weight", "attn_k", Some(2), 8));
        assert!(!recipe.rules[0].matches("blk.7.attn_k.weight", "attn_k", Some(7), 8));

        for (text, expected) in [
            (
                "type = \"f16\"\n[[rule]]\nmethod = \"svd\"",
                "exactly one of",
            ),
            (
                "type = \"f16\"\n[[rule]]\nmethod = \"svd\"\nkeep = 2.0",
                "fraction",
            ),
            (
                "type = \"f16\"\n[[rule]]\nmethod = \"magic\"",
                "`magic` is not known",
            ),
            (
                "type = \"f16\"\n[[rule]]\ntype = \"q9\"",
                "`q9` is not a ggml type",
            ),
            ("type = \"f16\"\nrules = 1", "unknown field"),
            ("type = \"q9\"", "`q9` is no preset and no file type"),
            ("type = \"q4km\"", "did you mean `q4_k_m`?"),
            ("type = \"aggresive\"", "did you mean `aggressive`?"),
            (
                "type = \"f16\"\n[structure]\nkeep = 0.8\n[[rule]]\nmethod = \"svd\"\nkeep = 0.5",
                "rule 1 of the recipe: `[structure]` goes with `quantize` alone",
            ),
        ] {
            let error = text.parse::<Recipe>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
