//! Recipes: the user's wishes as TOML, rules from roles, layers and names to methods.

use std::fmt;
use std::str::FromStr;

use dwindle_formats::gguf::TensorType;
use serde::Deserialize;

use crate::method::prune::Pruning;
use crate::method::sparsity::Pattern;

/// Why a recipe can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeError {
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
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// What holds where no rule does.
    pub base: Base,
    /// The exceptions, in the order in which they were written.
    pub rules: Vec<Rule>,
}

/// The type of everything that no rule names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// Each tensor in its source's type.
    Source,
    /// One of llama-quantize's file types (`f16`, `q8_0`, `q4_k_m`), with its mixture of types.
    FileType(String),
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Base::Source => f.write_str("source"),
            Base::FileType(name) => f.write_str(name),
        }
    }
}

/// Which tensors, and what becomes of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Roles (`attn_k`, `ffn_down`); empty for all.
    pub roles: Vec<String>,
    /// Layers; empty for all, tensors outside the layers included.
    pub layers: Vec<LayerRange>,
    /// A name pattern in which `*` stands for any characters.
    pub name: Option<String>,
    /// What becomes of the tensors.
    pub method: Method,
}

/// A way to make a tensor smaller, with its parameters.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// Every element in another type; `None` keeps the source's.
    Quantize(Option<TensorType>),
    /// Two factors by truncated singular value decomposition.
    Svd {
        /// How many singular values stay.
        rank: Rank,
        /// The factors' element type.
        ty: TensorType,
    },
    /// Some elements become zero.
    Prune {
        /// How they are chosen.
        pruning: Pruning,
        /// How many, and in what pattern.
        pattern: Pattern,
        /// The element type of the rest; `None` keeps the source's.
        ty: Option<TensorType>,
    },
}

/// How the rank of a factorization is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rank {
    /// This many.
    Fixed(u64),
    /// As many as keep this fraction of the tensor's parameters, factors counted.
    Keep(f64),
    /// As few as hold this fraction of the squared singular values' sum.
    Energy(f64),
}

/// Layers from `start` up to and without `end`; negative numbers count from the last layer's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerRange {
    start: i64,
    end: Option<i64>,
}

impl LayerRange {
    /// Whether a layer of a model with `count` layers is inside.
    pub fn contains(&self, layer: u32, count: u32) -> bool {
        let from_start = |n: i64| if n < 0 { n + i64::from(count) } else { n };
        let layer = i64::from(layer);
        layer >= from_start(self.start) && self.end.is_none_or(|end| layer < from_start(end))
    }
}

impl FromStr for LayerRange {
    type Err = String;

    /// Reads `3`, `2..5`, `..4`, `-2..`.
    fn from_str(text: &str) -> Result<LayerRange, String> {
        let number = |s: &str| {
            s.trim().parse::<i64>().map_err(|_| {
                format!("`{text}` is no layer range; expected forms are `3`, `2..5`, `..4`, `-2..`")
            })
        };
        match text.split_once("..") {
            None => {
                let n = number(text)?;
                Ok(LayerRange {
                    start: n,
                    // After the last layer of all there is no end to count to.
                    end: n.checked_add(1).filter(|end| *end != 0),
                })
            }
            Some((start, end)) => Ok(LayerRange {
                start: if start.trim().is_empty() {
                    0
                } else {
                    number(start)?
                },
                end: if end.trim().is_empty() {
                    None
                } else {
                    Some(number(end)?)
                },
            }),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecipe {
    #[serde(rename = "type")]
    base: String,
    #[serde(default, rename = "rule")]
    rules: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRule {
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    layers: Vec<String>,
    name: Option<String>,
    method: Option<String>,
    #[serde(rename = "type")]
    ty: Option<String>,
    rank: Option<u64>,
    keep: Option<f64>,
    energy: Option<f64>,
    sparsity: Option<f64>,
    pattern: Option<String>,
}

impl Recipe {
    /// A recipe without rules.
    pub fn base(name: &str) -> Recipe {
        Recipe {
            base: parse_base(name),
            rules: Vec::new(),
        }
    }
}

impl FromStr for Recipe {
    type Err = RecipeError;

    fn from_str(text: &str) -> Result<Recipe, RecipeError> {
        let raw: RawRecipe = toml::from_str(text)?;
        let rules = raw
            .rules
            .into_iter()
            .enumerate()
            .map(|(i, rule)| {
                rule.check().map_err(|problem| RecipeError::Rule {
                    number: i + 1,
                    problem,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Recipe {
            base: parse_base(&raw.base),
            rules,
        })
    }
}

fn parse_base(name: &str) -> Base {
    match name {
        "source" => Base::Source,
        other => Base::FileType(other.to_ascii_lowercase()),
    }
}

impl RawRule {
    fn check(self) -> Result<Rule, String> {
        let layers = self
            .layers
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, String>>()?;
        let ty = match self.ty.as_deref() {
            None | Some("source") => None,
            Some(name) => Some(name.parse::<TensorType>().map_err(|e| e.to_string())?),
        };
        let ranks: Vec<Rank> = [
            self.rank.map(Rank::Fixed),
            self.keep.map(Rank::Keep),
            self.energy.map(Rank::Energy),
        ]
        .into_iter()
        .flatten()
        .collect();
        let pattern = parse_pattern(self.sparsity, self.pattern.as_deref())?;
        let name = self.method.as_deref().unwrap_or("quantize");
        let pruning = Pruning::from_name(name);
        if pruning.is_none() && pattern.is_some() {
            return Err(format!(
                "`sparsity` and `pattern` belong to `magnitude`, `wanda` and `sparsegpt`, not to `{name}`"
            ));
        }
        if name != "svd" && !ranks.is_empty() {
            return Err("`rank`, `keep` and `energy` belong to `method = \"svd\"`".into());
        }
        let method = match (name, pruning) {
            ("quantize", _) if self.ty.is_some() => Method::Quantize(ty),
            ("quantize", _) => {
                return Err("`quantize` needs `type`, such as `type = \"q8_0\"`".into());
            }
            ("svd", _) => match ranks[..] {
                [rank] => Method::Svd {
                    rank: check_rank(rank)?,
                    ty: ty.unwrap_or(TensorType::Q8_0),
                },
                _ => {
                    return Err("`svd` needs exactly one of `rank`, `keep` and `energy`".into());
                }
            },
            (_, Some(pruning)) => Method::Prune {
                pruning,
                pattern: pattern.ok_or_else(|| {
                    format!("`{name}` needs `sparsity = 0.5` or `pattern = \"2:4\"`")
                })?,
                ty,
            },
            (other, None) => {
                return Err(format!(
                    "method `{other}` is not known; known are `quantize`, `svd`, `magnitude`, `wanda` and `sparsegpt`"
                ));
            }
        };
        Ok(Rule {
            roles: self.roles,
            layers,
            name: self.name,
            method,
        })
    }
}

/// Reads `sparsity = 0.5`, the share of zeros, or `pattern = "2:4"`: two of four stay.
fn parse_pattern(sparsity: Option<f64>, pattern: Option<&str>) -> Result<Option<Pattern>, String> {
    match (sparsity, pattern) {
        (None, None) => Ok(None),
        (Some(s), None) if (0.0..=1.0).contains(&s) => Ok(Some(Pattern::Unstructured(s))),
        (Some(s), None) => Err(format!(
            "`sparsity` is {s}, expected a fraction from 0 to 1"
        )),
        (None, Some(text)) => {
            let parsed = text.split_once(':').and_then(|(keep, group)| {
                let (keep, group) = (keep.parse().ok()?, group.parse().ok()?);
                (keep <= group && group > 0).then_some(Pattern::Groups { keep, group })
            });
            match parsed {
                Some(pattern) => Ok(Some(pattern)),
                None => Err(format!("`pattern` is `{text}`, expected the form `2:4`")),
            }
        }
        (Some(_), Some(_)) => Err("give `sparsity` or `pattern`, not both".into()),
    }
}

fn check_rank(rank: Rank) -> Result<Rank, String> {
    match rank {
        Rank::Fixed(0) => Err("`rank` is 0, expected at least 1".into()),
        Rank::Keep(f) if !(f > 0.0 && f <= 1.0) => Err(format!(
            "`keep` is {f}, expected a fraction above 0 and up to 1"
        )),
        Rank::Energy(f) if !(f > 0.0 && f <= 1.0) => Err(format!(
            "`energy` is {f}, expected a fraction above 0 and up to 1"
        )),
        rank => Ok(rank),
    }
}

impl Rule {
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
    fn layer_ranges_count_from_both_ends() {
        let layers = |text: &str| {
            let range: LayerRange = text.parse().unwrap();
            (0..6).filter(|l| range.contains(*l, 6)).collect::<Vec<_>>()
        };
        assert_eq!(layers("3"), [3]);
        assert_eq!(layers("-1"), [5]);
        assert_eq!(layers("-2.."), [4, 5]);
        assert_eq!(layers("2..-2"), [2, 3]);
        assert_eq!(layers("..2"), [0, 1]);
        assert_eq!(layers("9223372036854775807"), [0u32; 0]);
        assert_eq!(layers("-9223372036854775808.."), [0, 1, 2, 3, 4, 5]);
        assert!("a..2".parse::<LayerRange>().is_err());
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
        assert_eq!(recipe.base, Base::FileType("q8_0".into()));
        assert_eq!(
            recipe.rules[0].method,
            Method::Svd {
                rank: Rank::Energy(0.9),
                ty: TensorType::F16
            }
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
                "`q9` is no ggml type",
            ),
            ("type = \"f16\"\nrules = 1", "unknown field"),
        ] {
            let error = text.parse::<Recipe>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
